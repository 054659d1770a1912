"""Home Assistant's Wyoming protocol, on a separate port."""
