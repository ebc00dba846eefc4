"""The unit of an OPC UA variable as the project writes it. Pure.

Rule: a unit is known by its UNECE code; where that is not in the table, the server's own words for it stand.
Source: OPC UA Part 8, 5.6.4 (EUInformation: a code's letters are the digits of `unitId`, base 256), and UNECE
Recommendation 20, Codes for Units of Measure Used in International Trade.
"""

from drivers.foreign_text import printable

UNECE = "http://www.opcfoundation.org/UA/units/un/cefact"
"""NamespaceUri of units that are UNECE's."""
UNIT_MAX = 40

UNITS = {
    "CEL": "°C", "FAH": "°F", "KEL": "K",
    "BAR": "bar", "MBR": "mbar", "PAL": "Pa", "KPA": "kPa", "MPA": "MPa", "A97": "hPa", "PS": "psi",
    "MTS": "m/s", "C16": "mm/s", "KMH": "km/h", "MSK": "m/s2", "RPM": "1/min", "RPS": "1/s", "2A": "rad/s",
    "HTZ": "Hz", "KHZ": "kHz", "MHZ": "MHz",
    "AMP": "A", "4K": "mA", "VLT": "V", "2Z": "mV", "KVT": "kV", "OHM": "Ω", "B49": "kΩ",
    "WTT": "W", "KWT": "kW", "MAW": "MW", "D46": "VA", "KVA": "kVA", "KVR": "kvar",
    "JOU": "J", "KJO": "kJ", "WHR": "Wh", "KWH": "kWh", "MWH": "MWh",
    "P1": "%", "59": "ppm", "2N": "dB", "C62": "", "Q30": "pH",
    "LTR": "l", "MTQ": "m3", "L2": "l/min", "E32": "l/h", "G51": "l/s", "MQH": "m3/h", "MQS": "m3/s",
    "4H": "µm", "MMT": "mm", "CMT": "cm", "MTR": "m", "KMT": "km", "MTK": "m2", "DD": "°", "C81": "rad",
    "GRM": "g", "KGM": "kg", "TNE": "t", "KGS": "kg/s", "E93": "kg/h", "KMQ": "kg/m3",
    "NEW": "N", "B47": "kN", "NU": "Nm",
    "C26": "ms", "SEC": "s", "MIN": "min", "HUR": "h", "DAY": "d",
    "LUX": "lx",
}  # fmt: skip
"""By UNECE code; C62 is "one", which needs no unit."""


def code_of(unit_id: int) -> str:
    """`CEL` of 4408652; '' of what is no code."""
    if not 0 < unit_id < 1 << 31:
        return ""
    raw = unit_id.to_bytes(4, "big").lstrip(b"\0")
    return raw.decode("ascii") if raw.isalnum() and raw.isascii() else ""


def unit_of(namespace: str | None, unit_id: int, display: str | None) -> str:
    """`°C`; '' where the server says nothing. display: the server's own words, not trusted."""
    code = code_of(unit_id) if namespace == UNECE else ""
    known = UNITS.get(code)
    return printable((display or "").strip(), UNIT_MAX) if known is None else known
