"""The ClientApp of simulated devices: the device's own, whose homes are folders or a table of people."""

from umbel.device_client.flower_app import client_app
from umbel.simulations.homes.home import home_of

app = client_app(home_of)
