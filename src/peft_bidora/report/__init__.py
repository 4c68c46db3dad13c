"""What a finished run is told by."""
