"""The ClientApp of simulated devices: the device's own, whose homes are folders or a table of people.

Where a run's config names what runs the graphs, the process that answers makes it ready.
"""

from flwr.app import Context, Message

from umbel.device_client.flower_app import COMPUTE, client_app, reply
from umbel.simulations.homes.home import home_of


def respond(message: Message, context: Context) -> Message:
    """Answers a message."""
    compute = str(context.run_config.get(COMPUTE) or "")
    if compute:
        from umbel.simulations.torch_graphs.opening import compute_with_torch

        compute_with_torch(compute)
    return reply(message, context, home_of)


app = client_app(respond)
