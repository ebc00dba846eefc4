"""What is known of OPC UA servers beside what they say of themselves: their limits, as data.

Rule: a profile only ever asks less of a server. A server that states a tighter limit of its own is believed, one that
states a wider one is not: S7-1500 names 1000 nodes in a Read and then counts those of all requests under way.
"""

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Profile:
    """Limits of a kind of server; None: what it says itself, or nodes_max.

    said_by: what its product or manufacturer name matches. nodes_max: variables in one Read, items in one
    CreateMonitoredItems. items_max: monitored items of all subscriptions together; the others are polled.
    publishing_min_us, sampling_min_us: faster ones are refused or slowed by the server. requests_max: PublishRequests
    waiting at the server at once. words: where it is known from.
    """

    title: str
    said_by: str
    nodes_max: int | None = None
    items_max: int | None = None
    publishing_min_us: int = 0
    sampling_min_us: int = 0
    requests_max: int | None = None
    words: str = ""


PROFILES = {
    "s7-1200": Profile(
        "Siemens S7-1200",
        r"s7[- ]?1200|simatic\.s7-1200|6es7 ?21",
        nodes_max=100,
        items_max=500,
        publishing_min_us=500_000,
        sampling_min_us=500_000,
        requests_max=2,
        words="system manual of the S7-1200: few sessions, subscriptions and items, slow sampling",
    ),
    "s7-1500": Profile(
        "Siemens S7-1500, ET 200SP",
        r"s7[- ]?1500|simatic\.s7-1500|et ?200sp|6es7 ?5|sinumerik",
        nodes_max=100,
        publishing_min_us=100_000,
        sampling_min_us=100_000,
        requests_max=4,
        words="counts the variables of all requests under way against its limit of 1000: small batches, one after another",
    ),
    "kepware": Profile(
        "PTC Kepware (KEPServerEX, ThingWorx Kepware)",
        r"kep(ware|server)|thingworx",
        nodes_max=500,
        publishing_min_us=50_000,
        words="large reads of slow devices outlast its own timeout",
    ),
    "beckhoff": Profile(
        "Beckhoff TwinCAT (TF6100)",
        r"beckhoff|twincat|tcopcua",
        nodes_max=500,
        publishing_min_us=50_000,
        sampling_min_us=10_000,
        words="samples over ADS: each fast item costs the PLC's cycle",
    ),
    "codesys": Profile(
        "CODESYS runtime (WAGO, Schneider, Bosch Rexroth …)",
        r"codesys|3s[- ]smart|wago",
        nodes_max=100,
        publishing_min_us=100_000,
        sampling_min_us=100_000,
        requests_max=4,
        words="small buffers: BadResponseTooLarge for larger batches",
    ),
    "plain": Profile("any other server", r"(?!)"),
}


def profile_of(name: str, said: str) -> Profile:
    """The profile of this name; `auto`: the one whose words the server's own product and manufacturer names have."""
    if name != "auto":
        return PROFILES[name]
    found = (profile for profile in PROFILES.values() if re.search(profile.said_by, said, re.IGNORECASE))
    return next(found, PROFILES["plain"])


def smallest(usual: int, *limits: Any) -> int:
    """Of what is usual and the limits that somebody stated (0 and no number: none)."""
    return min([usual, *(int(limit) for limit in limits if isinstance(limit, int) and limit > 0)])
