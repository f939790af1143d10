"""The two tools of the QNN route, as far as arguments and files go."""
