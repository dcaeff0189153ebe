"""How the trials are shown: a table, a picture and paired comparisons for each experiment."""
