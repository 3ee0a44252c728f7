"""The papers' tables, rerun: a driver, a YAML file a table, a CSV line a run."""
