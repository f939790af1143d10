"""The files beside a command: shapes, precisions, partitions."""
