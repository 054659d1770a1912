"""Home Assistant's Wyoming protocol, on a port of its own."""
