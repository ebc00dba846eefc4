"""Status codes of OPC UA: what each one says of a value, its name, and what a person does about it. Pure.

Rule 1: the severity alone (the two top bits) decides between good, uncertain and bad; 11 is bad, too (Part 4, 7.39.1).
Rule 2: a code is looked up without its lower half, which holds flags (limit, overflow, structure changed) and no name.
Numbers: OPC UA Part 6, A.2 (StatusCode.csv); meanings: Part 4, 7.39.2, and Part 8, 6.3.2.
"""

from dataclasses import dataclass

import numpy as np

from edge_agent.contract import Codes, Quality

BAD = 0x8000_0000
UNCERTAIN = 0x4000_0000
NAME_MASK = 0xFFFF_0000
OVERFLOW_MASK, OVERFLOW = 0x0C80, 0x0480
"""Values were lost in the server's queue: InfoType DataValue (01 in bits 10 and 11) and the bit Overflow (Part 4, 7.39.1)."""

_WAIT = "nothing to do when it passes; else look at the server's own log"
_LINE = "look at the line between the server and the device"
_ADDRESS = "correct the address in the configuration; `browse` shows what the server has"
_RIGHTS = "give the agent's user the right to read it, at the server"
_LOGIN = "check user and password, and what the server allows"
_TRUST = "check date, name and trust of both certificates, at the server and here"
_OURS = "nothing to do: the agent mends it with a new session or subscription"
_LESS = "nothing to do when it passes: the agent asks for less at a time; else raise the server's limits"
_SUPPORT = "the server cannot do it; ask its vendor, or read the variable by `mode: poll`"
_SENSOR = "look at the sensor and its wiring"
_DEVICE = "look at the device behind the server"


@dataclass(frozen=True, slots=True)
class Status:
    """One code. quality: of a value that carries it. advice: for people, what to do; '' where nothing is wrong."""

    code: int
    name: str
    quality: Quality
    advice: str


_ROWS: tuple[tuple[int, str, Quality, str], ...] = (
    (0x0000_0000, "Good", Quality.GOOD, ""),
    (0x002D_0000, "GoodSubscriptionTransferred", Quality.GOOD, ""),
    (0x002F_0000, "GoodOverload", Quality.GOOD, "the server samples more slowly than asked: ask it for less"),
    (0x0030_0000, "GoodClamped", Quality.GOOD, ""),
    (0x0096_0000, "GoodLocalOverride", Quality.GOOD, "somebody set this value by hand at the machine"),
    (0x4000_0000, "Uncertain", Quality.UNCERTAIN, _DEVICE),
    (0x408F_0000, "UncertainNoCommunicationLastUsableValue", Quality.UNCERTAIN, _LINE),
    (0x4090_0000, "UncertainLastUsableValue", Quality.UNCERTAIN, _DEVICE),
    (
        0x4091_0000,
        "UncertainSubstituteValue",
        Quality.UNCERTAIN,
        "the value is set by hand or a substitute; " + _DEVICE,
    ),
    (0x4092_0000, "UncertainInitialValue", Quality.UNCERTAIN, "wait: the device has just started"),
    (0x4093_0000, "UncertainSensorNotAccurate", Quality.UNCERTAIN, _SENSOR),
    (0x4094_0000, "UncertainEngineeringUnitsExceeded", Quality.UNCERTAIN, "the value is outside its range; " + _SENSOR),
    (0x4095_0000, "UncertainSubNormal", Quality.UNCERTAIN, "fewer sources than wanted are good; " + _SENSOR),
    (0x4209_0000, "UncertainSimulatedValue", Quality.UNCERTAIN, "end the simulation in the device"),
    (0x420A_0000, "UncertainSensorCalibration", Quality.UNCERTAIN, "the sensor wants calibration"),
    (0x8000_0000, "Bad", Quality.OTHER, _DEVICE),
    (0x8001_0000, "BadUnexpectedError", Quality.OTHER, _WAIT),
    (0x8002_0000, "BadInternalError", Quality.OTHER, _WAIT),
    (0x8003_0000, "BadOutOfMemory", Quality.OTHER, "restart the server; ask it for fewer variables"),
    (0x8004_0000, "BadResourceUnavailable", Quality.TIMEOUT, _WAIT),
    (0x8005_0000, "BadCommunicationError", Quality.TIMEOUT, _LINE),
    (0x8006_0000, "BadEncodingError", Quality.OTHER, _WAIT),
    (0x8007_0000, "BadDecodingError", Quality.OTHER, _WAIT),
    (0x8008_0000, "BadEncodingLimitsExceeded", Quality.OTHER, _LESS),
    (0x8009_0000, "BadUnknownResponse", Quality.OTHER, _WAIT),
    (0x800A_0000, "BadTimeout", Quality.TIMEOUT, _LINE),
    (0x800B_0000, "BadServiceUnsupported", Quality.OTHER, _SUPPORT),
    (0x800C_0000, "BadShutdown", Quality.DISCONNECTED, "wait: the server is shutting down"),
    (0x800D_0000, "BadServerNotConnected", Quality.DISCONNECTED, _LINE),
    (0x800E_0000, "BadServerHalted", Quality.OTHER, "start the server"),
    (0x800F_0000, "BadNothingToDo", Quality.OTHER, _OURS),
    (0x8010_0000, "BadTooManyOperations", Quality.OTHER, _LESS),
    (0x8011_0000, "BadDataTypeIdUnknown", Quality.OTHER, _SUPPORT),
    (0x8012_0000, "BadCertificateInvalid", Quality.OTHER, _TRUST),
    (0x8013_0000, "BadSecurityChecksFailed", Quality.OTHER, _TRUST),
    (0x8014_0000, "BadCertificateTimeInvalid", Quality.OTHER, _TRUST),
    (0x8015_0000, "BadCertificateIssuerTimeInvalid", Quality.OTHER, _TRUST),
    (0x8016_0000, "BadCertificateHostNameInvalid", Quality.OTHER, _TRUST),
    (0x8017_0000, "BadCertificateUriInvalid", Quality.OTHER, _TRUST),
    (0x8018_0000, "BadCertificateUseNotAllowed", Quality.OTHER, _TRUST),
    (0x8019_0000, "BadCertificateIssuerUseNotAllowed", Quality.OTHER, _TRUST),
    (0x801A_0000, "BadCertificateUntrusted", Quality.OTHER, "trust the agent's certificate at the server"),
    (0x801B_0000, "BadCertificateRevocationUnknown", Quality.OTHER, _TRUST),
    (0x801C_0000, "BadCertificateIssuerRevocationUnknown", Quality.OTHER, _TRUST),
    (0x801D_0000, "BadCertificateRevoked", Quality.OTHER, _TRUST),
    (0x801E_0000, "BadCertificateIssuerRevoked", Quality.OTHER, _TRUST),
    (0x801F_0000, "BadUserAccessDenied", Quality.REFUSED, _RIGHTS),
    (0x8020_0000, "BadIdentityTokenInvalid", Quality.OTHER, _LOGIN),
    (0x8021_0000, "BadIdentityTokenRejected", Quality.OTHER, _LOGIN),
    (0x8022_0000, "BadSecureChannelIdInvalid", Quality.OTHER, _OURS),
    (
        0x8023_0000,
        "BadInvalidTimestamp",
        Quality.OTHER,
        "by the server's clock the request is too old or too new; compare the clocks of both",
    ),
    (0x8024_0000, "BadNonceInvalid", Quality.OTHER, _TRUST),
    (0x8025_0000, "BadSessionIdInvalid", Quality.OTHER, _OURS),
    (0x8026_0000, "BadSessionClosed", Quality.OTHER, _OURS),
    (0x8027_0000, "BadSessionNotActivated", Quality.OTHER, _OURS),
    (0x8028_0000, "BadSubscriptionIdInvalid", Quality.OTHER, _OURS),
    (0x802A_0000, "BadRequestHeaderInvalid", Quality.OTHER, _SUPPORT),
    (0x802B_0000, "BadTimestampsToReturnInvalid", Quality.OTHER, _SUPPORT),
    (0x802C_0000, "BadRequestCancelledByClient", Quality.OTHER, _OURS),
    (0x8031_0000, "BadNoCommunication", Quality.TIMEOUT, _LINE),
    (
        0x8032_0000,
        "BadWaitingForInitialData",
        Quality.MISSING,
        "wait: the server has no first value yet; else " + _LINE,
    ),
    (0x8033_0000, "BadNodeIdInvalid", Quality.REFUSED, _ADDRESS),
    (0x8034_0000, "BadNodeIdUnknown", Quality.REFUSED, _ADDRESS),
    (0x8035_0000, "BadAttributeIdInvalid", Quality.REFUSED, "the address names no variable; " + _ADDRESS),
    (0x8036_0000, "BadIndexRangeInvalid", Quality.REFUSED, "correct the index of the element in the configuration"),
    (0x8037_0000, "BadIndexRangeNoData", Quality.OTHER, "the array is shorter than the index; correct it"),
    (0x8038_0000, "BadDataEncodingInvalid", Quality.OTHER, _SUPPORT),
    (0x8039_0000, "BadDataEncodingUnsupported", Quality.OTHER, _SUPPORT),
    (0x803A_0000, "BadNotReadable", Quality.REFUSED, _RIGHTS),
    (0x803C_0000, "BadOutOfRange", Quality.OUT_OF_RANGE, _SENSOR),
    (0x803D_0000, "BadNotSupported", Quality.REFUSED, _SUPPORT),
    (0x803E_0000, "BadNotFound", Quality.REFUSED, _ADDRESS),
    (0x803F_0000, "BadObjectDeleted", Quality.OTHER, _ADDRESS),
    (0x8040_0000, "BadNotImplemented", Quality.REFUSED, _SUPPORT),
    (0x8041_0000, "BadMonitoringModeInvalid", Quality.OTHER, _SUPPORT),
    (0x8042_0000, "BadMonitoredItemIdInvalid", Quality.OTHER, _OURS),
    (0x8043_0000, "BadMonitoredItemFilterInvalid", Quality.OTHER, "take the deadband of this signal away"),
    (0x8044_0000, "BadMonitoredItemFilterUnsupported", Quality.OTHER, "take the deadband of this signal away"),
    (0x8045_0000, "BadFilterNotAllowed", Quality.OTHER, "take the deadband of this signal away"),
    (0x804A_0000, "BadContinuationPointInvalid", Quality.OTHER, _WAIT),
    (0x804B_0000, "BadNoContinuationPoints", Quality.OTHER, _WAIT),
    (0x804F_0000, "BadServerUriInvalid", Quality.OTHER, "correct the connection's `url`: it leads to another server"),
    (0x8053_0000, "BadRequestTypeInvalid", Quality.OTHER, _SUPPORT),
    (0x8054_0000, "BadSecurityModeRejected", Quality.OTHER, "choose a `security` that the server offers"),
    (0x8055_0000, "BadSecurityPolicyRejected", Quality.OTHER, "choose a `security` that the server offers"),
    (0x8056_0000, "BadTooManySessions", Quality.OTHER, "end sessions that are not needed, or raise the server's limit"),
    (0x8057_0000, "BadUserSignatureInvalid", Quality.OTHER, _LOGIN),
    (0x8058_0000, "BadApplicationSignatureInvalid", Quality.OTHER, _TRUST),
    (0x8059_0000, "BadNoValidCertificates", Quality.OTHER, _TRUST),
    (0x805A_0000, "BadRequestCancelledByRequest", Quality.OTHER, _OURS),
    (0x805B_0000, "BadParentNodeIdInvalid", Quality.OTHER, _ADDRESS),
    (0x8071_0000, "BadHistoryOperationInvalid", Quality.OTHER, _SUPPORT),
    (0x8072_0000, "BadHistoryOperationUnsupported", Quality.OTHER, _SUPPORT),
    (0x8074_0000, "BadTypeMismatch", Quality.OTHER, _ADDRESS),
    (0x8077_0000, "BadTooManySubscriptions", Quality.OTHER, "end subscriptions of others, or raise the server's limit"),
    (0x8078_0000, "BadTooManyPublishRequests", Quality.OTHER, _LESS),
    (0x8079_0000, "BadNoSubscription", Quality.OTHER, _OURS),
    (0x807A_0000, "BadSequenceNumberUnknown", Quality.OTHER, _OURS),
    (0x807B_0000, "BadMessageNotAvailable", Quality.OTHER, "values between were lost: the line was away too long"),
    (0x807D_0000, "BadTcpServerTooBusy", Quality.OTHER, _WAIT),
    (0x807E_0000, "BadTcpMessageTypeInvalid", Quality.OTHER, _SUPPORT),
    (0x807F_0000, "BadTcpSecureChannelUnknown", Quality.OTHER, _OURS),
    (0x8080_0000, "BadTcpMessageTooLarge", Quality.OTHER, _LESS),
    (0x8081_0000, "BadTcpNotEnoughResources", Quality.OTHER, _WAIT),
    (0x8082_0000, "BadTcpInternalError", Quality.OTHER, _WAIT),
    (0x8083_0000, "BadTcpEndpointUrlInvalid", Quality.OTHER, "correct the path in the connection's `url`"),
    (0x8084_0000, "BadRequestInterrupted", Quality.OTHER, _WAIT),
    (0x8085_0000, "BadRequestTimeout", Quality.OTHER, _WAIT),
    (0x8086_0000, "BadSecureChannelClosed", Quality.OTHER, _OURS),
    (0x8087_0000, "BadSecureChannelTokenUnknown", Quality.OTHER, _OURS),
    (0x8088_0000, "BadSequenceNumberInvalid", Quality.OTHER, _OURS),
    (
        0x8089_0000,
        "BadConfigurationError",
        Quality.REFUSED,
        "the variable is set up wrongly in the server; correct it there",
    ),
    (0x808A_0000, "BadNotConnected", Quality.DISCONNECTED, "the variable has no source, or " + _LINE),
    (0x808B_0000, "BadDeviceFailure", Quality.DEVICE_FAILURE, _DEVICE),
    (0x808C_0000, "BadSensorFailure", Quality.SENSOR_FAILURE, _SENSOR),
    (0x808D_0000, "BadOutOfService", Quality.DEVICE_FAILURE, "put the device into service again"),
    (0x808E_0000, "BadDeadbandFilterInvalid", Quality.OTHER, "take the deadband of this signal away"),
    (0x809B_0000, "BadNoData", Quality.MISSING, _WAIT),
    (0x809D_0000, "BadDataLost", Quality.MISSING, _WAIT),
    (0x809E_0000, "BadDataUnavailable", Quality.MISSING, _WAIT),
    (0x80AB_0000, "BadInvalidArgument", Quality.OTHER, _SUPPORT),
    (0x80AC_0000, "BadConnectionRejected", Quality.OTHER, _WAIT),
    (0x80AE_0000, "BadConnectionClosed", Quality.OTHER, _OURS),
    (0x80AF_0000, "BadInvalidState", Quality.OTHER, _DEVICE),
    (0x80B1_0000, "BadNoDataAvailable", Quality.MISSING, _WAIT),
    (0x80B8_0000, "BadRequestTooLarge", Quality.OTHER, _LESS),
    (0x80B9_0000, "BadResponseTooLarge", Quality.OTHER, _LESS),
    (0x80BE_0000, "BadProtocolVersionUnsupported", Quality.OTHER, _SUPPORT),
    (0x80C6_0000, "BadIdentityChangeNotSupported", Quality.OTHER, _LOGIN),
    (0x80DB_0000, "BadTooManyMonitoredItems", Quality.OTHER, "watch fewer variables, or raise the server's limit"),
    (
        0x80E6_0000,
        "BadSecurityModeInsufficient",
        Quality.REFUSED,
        "choose a stronger `security`: the server wants it here",
    ),
    (0x80EA_0000, "BadIndexRangeDataMismatch", Quality.OTHER, "correct the `index` of this signal"),
    (0x80EE_0000, "BadServerTooBusy", Quality.OTHER, _WAIT),
    (0x80F0_0000, "BadNoValue", Quality.MISSING, _WAIT),
    (0x810D_0000, "BadCertificateChainIncomplete", Quality.OTHER, _TRUST),
    (0x810E_0000, "BadLicenseExpired", Quality.OTHER, "renew the server's licence"),
    (0x810F_0000, "BadLicenseLimitsExceeded", Quality.OTHER, "the server's licence allows no more: end other clients"),
    (0x8112_0000, "BadNumericOverflow", Quality.OTHER, _SUPPORT),
    (0x8114_0000, "BadCertificatePolicyCheckFailed", Quality.OTHER, _TRUST),
)

STATUSES = {row[0]: Status(*row) for row in _ROWS}
"""By code. What a value may carry beside these is judged by its severity alone."""


def _qualities() -> Codes:
    table = np.full(0x1_0000, Quality.OTHER, np.uint8)
    table[: UNCERTAIN >> 16] = Quality.GOOD
    table[UNCERTAIN >> 16 : BAD >> 16] = Quality.UNCERTAIN
    for code, status in STATUSES.items():
        table[code >> 16] = status.quality
    return table


QUALITIES = _qualities()
"""(65536,) uint8, indexed by `status >> 16`: the quality of a value with this status, whatever the value is."""


def name(status: int) -> str:
    """`BadSensorFailure`; of a code that is not known its severity and number: `Bad (0x80FF0000)`."""
    known = STATUSES.get(status & NAME_MASK)
    if known is not None:
        return known.name
    return f"{_severity(status).name} (0x{status & NAME_MASK:08X})"


def readable(text: str) -> str:
    """A text of a server as UTF-8 can hold it. What was none keeps its bytes as surrogates, which nobody else takes: it is
    read as Windows-1252, which is what controllers write.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogateescape").decode("cp1252", "replace")
    return text


def quality(status: int) -> Quality:
    """What a status says of one value."""
    return STATUSES.get(status & NAME_MASK, _severity(status)).quality


def advice(status: int) -> str:
    """In words for people what to do about it; of a code that is not known, what to do about its severity."""
    return STATUSES.get(status & NAME_MASK, _severity(status)).advice


def _severity(status: int) -> Status:
    """The plain Good, Uncertain or Bad of this code; 11 is taken as bad."""
    return STATUSES[BAD if status & BAD else status & UNCERTAIN]
