"""The two tools of the QNN route: the converter of networks, and the generator of programs."""
