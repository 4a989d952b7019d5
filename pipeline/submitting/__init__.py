"""Jobs handed to a cluster by name, so that a schedule can hand over the same one twice."""
