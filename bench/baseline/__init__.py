"""The control that Parshall is measured against."""
