"""What usage costs: one price model a file, a registry of them, the price book that names them. All of it pure."""
