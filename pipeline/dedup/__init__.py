"""Which rows of a table show the same picture: pairs, groups of them, and the row of each group to keep."""
