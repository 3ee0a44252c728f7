"""The run that all tasks share: load, check, train, save, reload and measure."""
