"""What a person may write about an OPC UA connection and about a variable behind it, and what each value means.

Rule: every refusal is a ValueError in words for whoever wrote the file: what was found, what is allowed.
"""

import base64
import binascii
import re
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from drivers.opcua_profiles import PROFILES
from edge_agent.contract import Duration, WrongKey, duration_us

POLICIES = ("Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss")
"""What OPC UA Part 7 still calls secure; Basic128Rsa15 and Basic256 rest on SHA-1 and are refused."""
OUTDATED = ("Basic128Rsa15", "Basic256")
MODES = ("Sign", "SignAndEncrypt")
QUEUE_MAX = 10_000
INDEX_RANGE = re.compile(r"[0-9]{1,9}(,[0-9]{1,9}){0,3}")
NODE_ID = re.compile(r"(?:nsu=(?P<uri>[^;]+);|ns=(?P<index>[0-9]{1,5});)?(?P<kind>[isgb])=(?P<text>.+)", re.DOTALL)
NO_PORT = "the port is a number from 1 to 65535, after the last colon"
NO_HOST = "the host cannot be read; an IPv6 address stands in brackets, like opc.tcp://[2001:db8::20]:4840"
BROWSE_NAME = re.compile(r"[^\x00-\x1f]{1,512}")


class SecretRef(BaseModel):
    """The name of a secret; the agent puts its text in its place (`model_copy`, unvalidated) before `open`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    secret: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")


def _not_plain(value: Any) -> Any:
    if isinstance(value, str | int):
        raise ValueError("a secret is never written in plain; write {secret: NAME}")  # noqa: TRY004  # pydantic's way
    return value


Secret = Annotated[SecretRef | None, BeforeValidator(_not_plain)]


class Connection(BaseModel):
    """The keys of a connection with `driver: opcua`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    url: str = Field(description="opc.tcp://host:4840/path of the server", examples=["opc.tcp://192.0.2.20:4840"])
    security: str = Field(
        default="none",
        description="none, or POLICY/MODE: Basic256Sha256, Aes128Sha256RsaOaep or Aes256Sha256RsaPss with Sign or "
        "SignAndEncrypt",
        examples=["Basic256Sha256/SignAndEncrypt"],
    )
    user: str | None = Field(default=None, min_length=1, description="user name; without one the session is anonymous")
    password: Secret = Field(default=None, description="{secret: NAME}; never in plain")
    user_certificate: Secret = Field(
        default=None, description="{secret: NAME} of a PEM text with the user's certificate and its private key"
    )
    certificate: Secret = Field(
        default=None,
        description="{secret: NAME} of a PEM text with this client's certificate and private key; "
        "by default one is made and kept in data_dir/pki/own",
    )
    check_host: bool | None = Field(
        default=None,
        description="whether the server's certificate must name the host of the url; by default only where trust comes by "
        "an issuer, else it is a warning",
    )
    need_revocations: bool = Field(
        default=True, description="whether trust by an issuer needs that issuer's list of revoked certificates"
    )
    mode: Literal["subscribe", "poll"] = Field(
        default="subscribe", description="subscribe: the server tells what changes; poll: it is asked each time"
    )
    publishing: Annotated[int, Duration("10ms", "1h")] | None = Field(
        default=None,
        description="how often a server that is subscribed to tells; by default as often as the fastest signal",
    )
    sampling: Annotated[int, Duration("0s", "1h")] | None = Field(
        default=None, description="how often the server looks at its variables; by default each signal's `every`"
    )
    queue: int | None = Field(
        default=None,
        ge=1,
        le=QUEUE_MAX,
        description="values that the server keeps for each variable between two tellings",
    )
    timeout: Annotated[int, Duration("10ms", "1min")] = Field(
        default=duration_us("4s"), description="for each answer of the server"
    )
    profile: str = Field(
        default="auto",
        description="the server's known limits: auto (told from its product name), " + ", ".join(sorted(PROFILES)),
    )
    history: bool = Field(default=True, description="fill a gap from the server's history, where it keeps one")
    _home: str | None = PrivateAttr(default=None)

    @property
    def home(self) -> str | None:
        """The folder of certificates; None: there is none."""
        return self._home

    def at_home(self, folder: str) -> Self:
        """The same settings, with a folder for certificates."""
        there = self.model_copy()
        there._home = folder  # noqa: SLF001  # our own
        return there

    @property
    def certified(self) -> bool:
        """See contract.is_certified."""
        return self.security != "none" or self.user_certificate is not None

    @field_validator("url")
    @classmethod
    def _is_opc_tcp(cls, url: str) -> str:
        split_url(url)
        return url

    @field_validator("security")
    @classmethod
    def _is_known(cls, security: str) -> str:
        return "none" if security.lower() == "none" else "/".join(policy_and_mode(security))

    @field_validator("profile")
    @classmethod
    def _is_a_profile(cls, profile: str) -> str:
        if profile != "auto" and profile not in PROFILES:
            raise ValueError(f"no profile {profile!r}; allowed are auto, {', '.join(sorted(PROFILES))}")
        return profile

    @model_validator(mode="after")
    def _users_fit(self) -> Self:
        if self.password is not None and self.user is None:
            raise WrongKey("password", "password needs a user")
        if self.user is not None and self.user_certificate is not None:
            raise WrongKey("user_certificate", "a user has a password or a certificate, not both")
        if self.certificate is not None and self.security == "none":
            raise WrongKey("certificate", "certificate needs a security other than none")
        return self


def policy_and_mode(security: str) -> tuple[str, str]:
    """`Basic256Sha256/SignAndEncrypt` → its parts, as OPC UA spells them. Raises ValueError with what is allowed."""
    allowed = f"none, or one of {', '.join(POLICIES)} with /Sign or /SignAndEncrypt"
    policy, _, mode = security.partition("/")
    outdated = next((name for name in OUTDATED if name.lower() == policy.lower()), None)
    if outdated:
        raise ValueError(f"security policy {outdated} is broken (it rests on SHA-1); allowed is {allowed}")
    found = [name for name in POLICIES if name.lower() == policy.replace("_", "").lower()]
    how = [name for name in MODES if name.lower() == mode.lower()]
    if found and not mode.strip():
        raise ValueError(f"security {security!r} lacks its mode; write {found[0]}/SignAndEncrypt, or {found[0]}/Sign")
    if not found or not how:
        raise ValueError(f"security {security!r} is not known; allowed is {allowed}")
    return found[0], how[0]


def _deadband(value: Any) -> Any:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")):
        return value
    percent = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)\s?%", value) if isinstance(value, str) else None
    if percent is None or not 0 < float(percent[1]) <= 100:
        raise ValueError(f"{value!r} is no deadband; write a number above 0 such as 0.5, or a share such as 1%")
    return f"{percent[1]}%"


class Address(BaseModel):
    """The keys of a signal that is an OPC UA variable."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    address: str = Field(
        description="a NodeId: nsu=URI;s=…, ns=2;i=… or i=… (i number, s string, g GUID, b base64)",
        examples=["nsu=urn:plant;s=Spindle.Speed", "ns=2;i=1001"],
    )
    index: str | None = Field(default=None, description="of an array: the element, 0 the first; of a matrix row,column")
    member: str | None = Field(
        default=None,
        pattern=r"^[^.\x00-\x1f]{1,128}(\.[^.\x00-\x1f]{1,128}){0,7}$",
        description="of a structure: the member, and its member after a dot",
    )
    browse_name: str | None = Field(
        default=None,
        pattern=r"^[^\x00-\x1f]{1,512}$",
        description="the variable's BrowseName without its namespace; by default what it was when it was first seen",
    )
    type: Literal["string"] | None = Field(
        default=None, description="string: a text, which is shown as an attribute and never judged"
    )
    sampling: Annotated[int, Duration("0s", "1h")] | None = Field(
        default=None, description="how often the server looks at it; by default `every`"
    )
    queue: int | None = Field(
        default=None, ge=1, le=QUEUE_MAX, description="values that the server keeps between two tellings"
    )
    report_deadband: Annotated[float | str | None, BeforeValidator(_deadband)] = Field(
        default=None,
        description="the server tells only changes larger than this: in the variable's own unit, or a % of its EURange",
        examples=[0.5, "1%"],
    )

    @property
    def attribute(self) -> bool:
        """See contract.is_attribute."""
        return self.type == "string"

    @field_validator("address")
    @classmethod
    def _is_a_node_id(cls, address: str) -> str:
        parse_node_id(address)
        return address

    @field_validator("index", mode="before")
    @classmethod
    def _is_an_index(cls, index: Any) -> Any:
        text = str(index) if isinstance(index, int) and not isinstance(index, bool) else index
        if text is not None and not (isinstance(text, str) and INDEX_RANGE.fullmatch(text.replace(" ", ""))):
            raise ValueError(f"{index!r} is no index; write a number such as 3, or row,column of a matrix")
        return text.replace(" ", "") if isinstance(text, str) else text

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        if self.index is not None and self.member is not None:
            raise WrongKey("member", "index and member do not go together")
        if self.report_deadband is not None and (self.member is not None or self.attribute):
            raise WrongKey("report_deadband", "a server compares numbers only: not a structure or a text")
        return self


@dataclass(frozen=True, slots=True)
class NodeName:
    """A NodeId as the configuration names it. uri: of the namespace; None: `index` is the server's own number."""

    uri: str | None
    index: int
    identifier: int | str | uuid.UUID | bytes


def parse_node_id(text: str) -> NodeName:
    """`nsu=URI;s=…`, `ns=2;i=…`, `i=…` → its parts. Raises ValueError with what is wrong (OPC UA Part 6, 5.3.1.10)."""
    found = NODE_ID.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no NodeId; write it like nsu=urn:plant;s=Spindle.Speed, ns=2;i=1001 or i=2258")
    index = int(found["index"] or 0)
    if index > 0xFFFF:
        raise ValueError(f"namespace index {index} is above 65535")
    uri = found["uri"].replace("%3B", ";").replace("%25", "%") if found["uri"] else None
    return NodeName(uri, index, _identifier(found["kind"], found["text"]))


def node_text(uri: str | None, index: int, identifier: int | str | uuid.UUID | bytes) -> str:
    """The inverse of parse_node_id: with the namespace's URI where it is known."""
    match identifier:
        case bytes():
            own = f"b={base64.b64encode(identifier).decode()}"
        case uuid.UUID():
            own = f"g={identifier}"
        case int():
            own = f"i={identifier}"
        case _:
            own = f"s={identifier}"
    if uri is not None:
        return f"nsu={uri.replace('%', '%25').replace(';', '%3B')};{own}"
    return f"ns={index};{own}" if index else own


def _identifier(kind: str, text: str) -> int | str | uuid.UUID | bytes:
    match kind:
        case "i":
            if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > 0xFFFFFFFF:
                raise ValueError(f"i={text}: a numeric identifier is 0 … 4294967295")
            return int(text)
        case "g":
            try:
                return uuid.UUID(text)
            except ValueError:
                raise ValueError(f"g={text} is no GUID") from None
        case "b":
            try:
                return base64.b64decode(text, validate=True)
            except binascii.Error:
                raise ValueError(f"b={text} is not base64") from None
        case _:
            return text


def split_url(url: str) -> SplitResult:
    """The parts of an opc.tcp URL; raises ValueError with words. A password does not belong into a URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:  # in the words of Python's own reader
        raise ValueError(f"{url!r}: {NO_PORT if 'ort ' in str(error) else NO_HOST}") from None
    if parts.scheme != "opc.tcp" or not parts.hostname or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r} is no OPC UA address; write it like opc.tcp://192.0.2.20:4840")
    if parts.username is not None:
        raise ValueError("user and password do not stand in the url; use the keys user and password")
    if port == 0:
        raise ValueError("port 0 cannot be reached")
    return parts
