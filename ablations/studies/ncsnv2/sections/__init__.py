"""The tables and figures of the study, of what was collected from files."""
