"""The order of the steps: one file a step, each naming the one before it."""
