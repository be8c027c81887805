"""A channel: a folder from which devices fetch releases that they trust, as The Update Framework says.

    channel/
      metadata/N.root.json          whose keys count; each is signed by the keys of the one before
      metadata/timestamp.json       which snapshot is the newest
      metadata/N.snapshot.json      which targets file is the newest
      metadata/N.targets.json       which release is the current one: length and sha256 of its manifest
      targets/<id>.manifest.json    the release's manifest; its sha256 is the release's id
      targets/blobs/<sha256>        what manifests name by content

Any host of static files can serve it. Blobs need no signature of their own: the manifest is signed for, and
gives the sha256 and size of each.
"""

METADATA, TARGETS, BLOBS = "metadata", "targets", "blobs"
ROLES = ("root", "targets", "snapshot", "timestamp")
"""The roles of The Update Framework, from the one that is needed most seldom on."""

TIMESTAMP = "timestamp.json"


def root_name(version: int) -> str:
    """Returns the name of a root file.

    Example:
        >>> root_name(1)
        '1.root.json'
    """
    return f"{version}.root.json"
