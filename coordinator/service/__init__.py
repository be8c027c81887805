"""The coordinator as a service: its certificates, the devices that may take part, and the link to them."""
