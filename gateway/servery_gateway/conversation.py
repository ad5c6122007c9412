"""What one Envoy asked for, was sent, and said to it. Pure: no streams, no clock."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import Message

from servery_gateway import xds_pool
from servery_gateway.snapshot import TYPES, WILDCARD

_RESPONSE: Final = "envoy.service.discovery.v3.DiscoveryResponse"


@dataclass(frozen=True, slots=True)
class Offer:
    """A snapshot as it is sent."""

    versions: Mapping[str, str]
    """By type."""

    encoded: Mapping[str, Mapping[str, bytes]]
    """Type, then name, to the serialized resource."""


@dataclass(slots=True)
class _Subscription:
    """One type of resource that the Envoy follows."""

    names: frozenset[str]
    """Those it asked for; not read for the types it takes all of."""

    version: str = ""
    """What it was sent last."""

    nonce: str = ""
    """With what that was sent."""

    answered: bool = False
    """Whether it accepted or refused that."""

    problem: str = ""
    """Why it refused that; empty if it did not."""

    due: bool = True
    """Whether it must be sent something even if nothing changed."""


@dataclass(eq=False, slots=True)
class Conversation:
    """The protocol's state for one stream."""

    _subscriptions: dict[str, _Subscription] = field(default_factory=dict)
    _num_sent: int = 0

    def receive(self, request: Any) -> str:
        """Take in a DiscoveryRequest.

        Returns:
            Why the Envoy refuses what it was sent last; empty if it does not.
        """
        names = frozenset(request.resource_names)
        subscription = self._subscriptions.get(request.type_url)
        if subscription is None:
            self._subscriptions[request.type_url] = _Subscription(names)
            return ""
        if request.response_nonce != subscription.nonce:
            return ""  # About an earlier response; what it says comes again for the last one.
        if not subscription.nonce:
            subscription.names = names  # Nothing was sent yet.
            return ""
        # An answer comes once for each response. What comes again asks again: a cluster that was
        # updated waits for its endpoints, and would for ever if this passed for an answer.
        asks_again = subscription.answered
        subscription.answered = True
        if request.HasField("error_detail"):
            subscription.problem = request.error_detail.message or "no reason given"
        subscription.due |= asks_again or names != subscription.names
        subscription.names = names
        return "" if asks_again else subscription.problem

    def offer_again(self, kind: str) -> None:
        """Let what the Envoy refused of this type be sent again."""
        if self._subscriptions[kind].problem:
            self._subscriptions[kind].due = True

    def next_response(self, offer: Offer) -> Message | None:
        """Return the next DiscoveryResponse to send; None when there is nothing to say."""
        for kind in TYPES:
            subscription = self._subscriptions.get(kind)
            if subscription is None:
                continue
            if subscription.version == offer.versions[kind] and not subscription.due:
                continue
            self._num_sent += 1
            subscription.version = offer.versions[kind]
            subscription.nonce = str(self._num_sent)
            subscription.answered = subscription.due = False
            subscription.problem = ""
            return _response(kind, subscription, offer.encoded[kind])
        return None

    def settled(self, versions: Mapping[str, str]) -> bool:
        """Tell whether the Envoy has accepted or refused all of `versions` that it follows."""
        return all(
            subscription.answered
            and not subscription.due
            and subscription.version == versions[kind]
            for kind, subscription in self._subscriptions.items()
            if kind in versions
        )

    def problem(self, versions: Mapping[str, str], kinds: Collection[str]) -> str:
        """Return why the Envoy refused a type of `kinds` in `versions`; empty if it did not."""
        for kind, subscription in self._subscriptions.items():
            current = kind in kinds and subscription.version == versions[kind]
            if current and subscription.problem:
                return subscription.problem
        return ""


def _response(kind: str, subscription: _Subscription, encoded: Mapping[str, bytes]) -> Message:
    response: Any = xds_pool.message_class(_RESPONSE)()
    response.type_url = kind
    response.version_info = subscription.version
    response.nonce = subscription.nonce
    for name, value in encoded.items():
        if kind in WILDCARD or name in subscription.names:
            resource = response.resources.add()
            resource.type_url, resource.value = kind, value
    message: Message = response
    return message
