"""What a warning says to a person, in their language: what, how much, since when. Pure.

Rule 1: plain, short, complete; the advice of the configuration says what to do. Rule 2: a text exists in every language.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from edge_agent.contract import SECOND_US
from edge_agent.records import EventKind, Kind

LANGUAGES = ("en", "nl", "de")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000
NO_NUMBERS: Mapping[str, float] = {}
DIGITS, EXACT = 5, 17
"""Significant digits of a number for people, and those that tell any two float64 apart."""

_RAISED: dict[str, dict[str, str]] = {
    Kind.HIGH: {
        "en": "{title} {value} is above its norm of {limit}",
        "nl": "{title} {value} is boven de norm van {limit}",
        "de": "{title} {value} liegt über der Norm von {limit}",
    },
    Kind.LOW: {
        "en": "{title} {value} is below its norm of {limit}",
        "nl": "{title} {value} is onder de norm van {limit}",
        "de": "{title} {value} liegt unter der Norm von {limit}",
    },
    Kind.RATE: {
        "en": "{title} {value}: {changes} by {rate} in {per}, more than its norm of {limit}",
        "nl": "{title} {value}: {changes} met {rate} in {per}, meer dan de norm van {limit}",
        "de": "{title} {value}: {changes} um {rate} in {per}, mehr als die Norm von {limit}",
    },
    Kind.FROZEN: {
        "en": "{title} has stood at exactly {value} for {duration}; a live sensor does not",
        "nl": "{title} staat al {duration} op precies {value}; een werkende sensor doet dat niet",
        "de": "{title} steht seit {duration} auf genau {value}; ein intakter Sensor tut das nicht",
    },
    Kind.STALE: {
        "en": "{title}: no good reading for {duration} ({reason})",
        "nl": "{title}: al {duration} geen goede meting ({reason})",
        "de": "{title}: seit {duration} kein guter Messwert ({reason})",
    },
    Kind.HEALTH: {
        "en": "{title}: {reason}",
        "nl": "{title}: {reason}",
        "de": "{title}: {reason}",
    },
}
_OUTSIDE = {
    "en": "{title} {value} is outside its norm ({kind})",
    "nl": "{title} {value} is buiten de norm ({kind})",
    "de": "{title} {value} liegt außerhalb der Norm ({kind})",
}
"""Found by a detector of others."""
_CHANGES = {"en": ("falls", "rises"), "nl": ("daalt", "stijgt"), "de": ("fällt", "steigt")}
_LOST = {
    "en": "{title} has been lost since {moment}: {reason}. {behind}.",
    "nl": "{title} is uitgevallen sinds {moment}: {reason}. {behind}.",
    "de": "{title} ist seit {moment} ausgefallen: {reason}. {behind}.",
}
_NOT_WATCHED = {
    "en": ("{} signal is not watched", "{} signals are not watched"),
    "nl": ("{} signaal wordt niet bewaakt", "{} signalen worden niet bewaakt"),
    "de": ("{} Signal wird nicht überwacht", "{} Signale werden nicht überwacht"),
}
CONNECTION = {"en": "Connection", "nl": "Verbinding", "de": "Verbindung"}
CHECK_THE_LINE = {
    "en": "Check the device's power, its network or serial cable, and its address.",
    "nl": "Controleer de voeding, de netwerk- of seriële kabel en het adres van het apparaat.",
    "de": "Spannung, Netzwerk- oder serielles Kabel und Adresse des Geräts prüfen.",
}
CERTIFICATES = {"en": "Certificates of {}", "nl": "Certificaten van {}", "de": "Zertifikate von {}"}
RENEW = {
    "en": "Renew it before it expires: after that day the connection is refused. Ours lies in data_dir/pki/own (or in the "
    "secret that the configuration names) and must be accepted in the server; the server's is renewed there, then: "
    "edge-agent trust NAME; an issuer's: edge-agent trust --issuer --import FILE.",
    "nl": "Vernieuw het voordat het verloopt: daarna wordt de verbinding geweigerd. Het onze staat in data_dir/pki/own (of "
    "in het geheim dat de configuratie noemt) en moet in de server worden geaccepteerd; dat van de server wordt daar "
    "vernieuwd, daarna: edge-agent trust NAAM; dat van een uitgever: edge-agent trust --issuer --import BESTAND.",
    "de": "Vor dem Ablauf erneuern: danach wird die Verbindung abgelehnt. Das eigene liegt in data_dir/pki/own (oder im "
    "Geheimnis, das die Konfiguration nennt) und muss im Server akzeptiert werden; das des Servers wird dort erneuert, dann: "
    "edge-agent trust NAME; das eines Ausstellers: edge-agent trust --issuer --import DATEI.",
}
_WHOSE = {
    "en": {
        "own": "our own certificate",
        "server": "the server's certificate",
        "issuer": "the issuer's certificate",
        "user": "the user's certificate",
    },
    "nl": {
        "own": "ons eigen certificaat",
        "server": "het certificaat van de server",
        "issuer": "het certificaat van de uitgever",
        "user": "het certificaat van de gebruiker",
    },
    "de": {
        "own": "das eigene Zertifikat",
        "server": "das Zertifikat des Servers",
        "issuer": "das Zertifikat des Ausstellers",
        "user": "das Zertifikat des Benutzers",
    },
}
_EXPIRES = {
    "en": ("{} {} expires on {}, within a day", "{} {} expires on {}, in 1 day", "{} {} expires on {}, in {} days"),
    "nl": ("{} {} verloopt op {}, binnen een dag", "{} {} verloopt op {}, over 1 dag", "{} {} verloopt op {}, over {} dagen"),
    "de": ("{} {} läuft am {} ab, in weniger als einem Tag", "{} {} läuft am {} ab, in 1 Tag", "{} {} läuft am {} ab, in {} Tagen"),
}  # fmt: skip
"""In less than a day, in one, in several."""
_EXPIRED = {
    "en": "{} {} expired on {}",
    "nl": "{} {} is verlopen op {}",
    "de": "{} {} ist am {} abgelaufen",
}
_LASTS = {
    "en": "in order again; the next to expire is {} {}, on {}",
    "nl": "weer in orde; als eerste verloopt {} {}, op {}",
    "de": "wieder in Ordnung; als Nächstes läuft {} {} ab, am {}",
}
DISK = {"en": "Disk", "nl": "Schijf", "de": "Datenträger"}
MAKE_ROOM = {
    "en": "Free space on the disk that holds data_dir (journal.db.damaged-*, old logs, exports), or give it a larger one; if "
    "it is read-only or failing, look into the system's log (dmesg), check the file system, replace the card. The agent goes "
    "on by itself within 10 s; nothing has to be restarted.",
    "nl": "Maak ruimte op de schijf waarop data_dir staat (journal.db.damaged-*, oude logboeken, exports) of geef een grotere; "
    "is hij alleen-lezen of defect, kijk dan in het systeemlogboek (dmesg), controleer het bestandssysteem, vervang de kaart. "
    "De agent gaat binnen 10 s vanzelf verder; niets hoeft opnieuw gestart te worden.",
    "de": "Platz auf dem Datenträger von data_dir schaffen (journal.db.damaged-*, alte Protokolle, Exporte) oder einen größeren "
    "einsetzen; ist er schreibgeschützt oder defekt: Systemprotokoll (dmesg) ansehen, Dateisystem prüfen, Karte tauschen. Der "
    "Agent macht innerhalb von 10 s von selbst weiter; nichts muss neu gestartet werden.",
}
_DISK_REFUSES = {
    "en": ("it fails", "it is full", "it is read-only", "no more files can be made (inodes are used up)"),
    "nl": (
        "hij is gestoord",
        "hij is vol",
        "hij is alleen-lezen",
        "er kunnen geen bestanden meer bij (inodes zijn op)",
    ),
    "de": (
        "er versagt",
        "er ist voll",
        "er ist schreibgeschützt",
        "es passen keine Dateien mehr darauf (keine Inodes frei)",
    ),
}
"""In the order of diskspace.Why."""
_NOT_KEPT = {
    "en": "{why}; nothing has been kept since {since} ({fault}). Measuring and warnings go on: readings wait in memory "
    "({waiting} of {room} MB); those for which there is no room are lost, and counted.",
    "nl": "{why}; sinds {since} wordt niets bewaard ({fault}). Meten en waarschuwen gaan door: metingen wachten in het "
    "geheugen ({waiting} van {room} MB); waarvoor geen plaats is, gaat verloren en wordt geteld.",
    "de": "{why}; seit {since} wird nichts aufbewahrt ({fault}). Messen und Warnen gehen weiter: Messwerte warten im Speicher "
    "({waiting} von {room} MB); wofür kein Platz ist, geht verloren und wird gezählt.",
}
_DISK_LOW = {
    "en": "nearly full: {free} of {total} free. When it is full, nothing more can be kept.",
    "nl": "bijna vol: {free} van {total} vrij. Is hij vol, dan kan niets meer worden bewaard.",
    "de": "fast voll: {free} von {total} frei. Ist er voll, kann nichts mehr aufbewahrt werden.",
}
_DISK_WELL = {"en": "in order again, {} free", "nl": "weer in orde, {} vrij", "de": "wieder in Ordnung, {} frei"}
_NO_WORDS = {
    "en": ("something has to be done soon", "in order again"),
    "nl": ("er moet binnenkort iets gebeuren", "weer in orde"),
    "de": ("hier ist bald etwas zu tun", "wieder in Ordnung"),
}
CLOCK = {"en": "Clock of this computer", "nl": "Klok van deze computer", "de": "Uhr dieses Rechners"}
SET_THE_CLOCK = {
    "en": "Set the clock while the agent runs: let it follow a time server (timedatectl set-ntp true), or by hand "
    "(timedatectl set-time). A clock that forgets the time when the power is off needs a new battery.",
    "nl": "Zet de klok gelijk terwijl de agent draait: laat hem een tijdserver volgen (timedatectl set-ntp true), of zet hem "
    "met de hand (timedatectl set-time). Een klok die zonder spanning de tijd vergeet, heeft een nieuwe batterij nodig.",
    "de": "Die Uhr stellen, während der Agent läuft: einem Zeitserver folgen lassen (timedatectl set-ntp true) oder von Hand "
    "stellen (timedatectl set-time). Eine Uhr, die ohne Spannung die Zeit vergisst, braucht eine neue Batterie.",
}
_CLOCK_NOT_SET = {
    "en": ("it was never set: it says {}", "it was not set since it started: it says {}, but there are readings of {} already"),
    "nl": ("nooit gelijkgezet: hij staat op {}", "niet gelijkgezet sinds de start: hij staat op {}, maar er zijn al metingen van {}"),
    "de": ("nie gestellt: sie zeigt {}", "seit dem Start nicht gestellt: sie zeigt {}, doch es gibt schon Messwerte von {}"),
}  # fmt: skip
_CLOCK_MARKED = {
    "en": "{}. Readings are marked `clock` until it is set",
    "nl": "{}. Metingen krijgen het merk `clock` tot hij gelijk is gezet",
    "de": "{}. Messwerte tragen die Marke `clock`, bis sie gestellt ist",
}
_CLOCK_STEPPED = {
    "en": ("it jumped forward by {} at {}", "it jumped back by {} at {}"),
    "nl": ("om {1} sprong hij {0} vooruit", "om {1} sprong hij {0} terug"),
    "de": ("um {1} sprang sie {0} vor", "um {1} sprang sie {0} zurück"),
}
_CLOCK_ALONE = {
    "en": "nothing has kept it right since {}: the time server is not reached, or its service does not run",
    "nl": "sinds {} houdt niets hem gelijk: de tijdserver is niet bereikbaar, of zijn dienst draait niet",
    "de": "seit {} stellt nichts sie nach: der Zeitserver ist nicht erreichbar, oder sein Dienst läuft nicht",
}
_CLOCK_RIGHT = {
    "en": "it can be believed again",
    "nl": "hij is weer te vertrouwen",
    "de": "ihr ist wieder zu trauen",
}
_DEESCALATED = {
    "en": "{title} {value}: no longer an alarm, still a warning",
    "nl": "{title} {value}: geen alarm meer, nog wel een waarschuwing",
    "de": "{title} {value}: kein Alarm mehr, aber noch eine Warnung",
}
"""The value may be inside the norm already (deadband, off-delay), so that "above its norm" could be wrong."""
_CLEARED = {
    "en": "{title} {value} is back within its norm",
    "nl": "{title} {value} is weer binnen de norm",
    "de": "{title} {value} liegt wieder in der Norm",
}
_STEADY_AGAIN = {
    "en": "{title} {value}: changes within its norm again",
    "nl": "{title} {value}: verandert weer binnen de norm",
    "de": "{title} {value}: ändert sich wieder im Rahmen der Norm",
}
_MOVES_AGAIN = {
    "en": "{title} moves again: {value}",
    "nl": "{title} beweegt weer: {value}",
    "de": "{title} bewegt sich wieder: {value}",
}
_READS_AGAIN = {
    "en": "{title} gives good readings again: {value}",
    "nl": "{title} geeft weer goede metingen: {value}",
    "de": "{title} liefert wieder gute Messwerte: {value}",
}
_ANSWERS_AGAIN = {
    "en": "{title} answers again after {lasted}",
    "nl": "{title} antwoordt weer na {lasted}",
    "de": "{title} antwortet wieder nach {lasted}",
}
_ENDED: dict[str, dict[str, str]] = {
    Kind.STALE: _READS_AGAIN,
    Kind.HEALTH: _ANSWERS_AGAIN,
    Kind.RATE: _STEADY_AGAIN,
    Kind.FROZEN: _MOVES_AGAIN,
}
_ACKNOWLEDGED = {
    "en": "{title}: seen by {by}",
    "nl": "{title}: gezien door {by}",
    "de": "{title}: gesehen von {by}",
}
_REMOVED = {
    "en": "{title} is no longer in the configuration",
    "nl": "{title} staat niet meer in de configuratie",
    "de": "{title} steht nicht mehr in der Konfiguration",
}
_NOT_KNOWN = {
    "en": "{title}: ends here, as the disk could not be read at the start; what is outside its norm has a new warning",
    "nl": "{title}: eindigt hier, de schijf was bij de start niet leesbaar; wat buiten de norm is, heeft een nieuwe waarschuwing",
    "de": "{title}: endet hier, die Platte war beim Start nicht lesbar; was außerhalb der Norm ist, hat eine neue Warnung",
}
_REASONS = {
    "en": {
        "timeout": "no answer",
        "disconnected": "not connected",
        "refused": "the device refuses to answer",
        "device_failure": "device failure",
        "sensor_failure": "sensor failure",
        "out_of_range": "impossible value",
        "not_a_number": "not a number",
        "protocol": "wrong answer from the device",
        "precision": "number too large to be exact",
        "missing": "nothing received",
        "restart": "agent restarted",
        "uncertain": "value uncertain",
        "other": "bad value",
    },
    "nl": {
        "timeout": "geen antwoord",
        "disconnected": "geen verbinding",
        "refused": "apparaat weigert te antwoorden",
        "device_failure": "apparaatstoring",
        "sensor_failure": "sensorstoring",
        "out_of_range": "onmogelijke waarde",
        "not_a_number": "geen getal",
        "protocol": "fout antwoord van het apparaat",
        "precision": "getal te groot om exact te zijn",
        "missing": "niets ontvangen",
        "restart": "agent herstart",
        "uncertain": "onzekere waarde",
        "other": "slechte waarde",
    },
    "de": {
        "timeout": "keine Antwort",
        "disconnected": "keine Verbindung",
        "refused": "Gerät verweigert die Antwort",
        "device_failure": "Gerätestörung",
        "sensor_failure": "Sensorstörung",
        "out_of_range": "unmöglicher Wert",
        "not_a_number": "keine Zahl",
        "protocol": "falsche Antwort vom Gerät",
        "precision": "Zahl zu groß, um exakt zu sein",
        "missing": "nichts empfangen",
        "restart": "Agent neu gestartet",
        "uncertain": "unsicherer Wert",
        "other": "schlechter Wert",
    },
}


@dataclass(frozen=True, slots=True)
class LostLine:
    """What is said of a line, or a part of one. behind: how many signals lie behind it. moment: since when it is lost."""

    behind: int
    moment: str
    lasted_us: int


def message(  # noqa: PLR0913 - what an event may tell, by name
    language: str,
    event: EventKind,
    kind: str,
    *,
    title: str,
    unit: str,
    value: float | None,
    limit: float | None,
    silent_us: int = 0,
    reason: str = "",
    line: LostLine | None = None,
    by: str = "",
    why: Mapping[str, float] = NO_NUMBERS,
) -> str:
    """A sentence or two about one step of a warning. value, limit: in the signal's unit, None where there is none.

    why: the numbers of its detector.
    """
    if event is EventKind.ACKNOWLEDGED:
        text = _ACKNOWLEDGED
    elif event is EventKind.CLEARED:
        text = _ENDED.get(kind, _CLEARED)
    elif event is EventKind.DEESCALATED:
        text = _DEESCALATED
    elif line is not None:
        text = _LOST
    else:
        text = _RAISED.get(kind, _OUTSIDE)
    rate = why.get("rate", 0.0)
    unchanged_us = round(why.get("unchanged_s", 0.0) * SECOND_US)
    digits = _digits(abs(rate) if kind == Kind.RATE else value, limit)
    return (
        text[language]
        .format(
            title=title,
            value=quantity(value, unit, language, digits),
            limit=quantity(limit, unit, language, digits),
            duration=duration(unchanged_us or silent_us, language),
            kind=kind,
            changes=_CHANGES[language][rate > 0],
            rate=quantity(abs(rate), unit, language, digits),
            per=duration(round(why.get("per_s", 0.0) * SECOND_US), language),
            reason=_REASONS[language].get(reason, reason),
            behind=_NOT_WATCHED[language][line.behind != 1].format(line.behind) if line else "",
            moment=line.moment if line else "",
            lasted=duration(max(0, line.lasted_us), language) if line else "",
            by=by,
        )
        .replace("  ", " ")
        .strip()
    )


def in_words(language: str, event: EventKind, title: str, words: str) -> str:
    """The same of a line's certificates, of the disk and of the clock. words: as whoever looks after them says it."""
    return f"{title}: {words or _NO_WORDS[language][event is EventKind.CLEARED]}"


def expires(language: str, whose: str, name: str, until_us: int, now_us: int) -> str:
    """When a certificate ends, or that it did. whose: see contract.WHOSE; both times UTC µs."""
    who, on, days = _WHOSE[language][whose], _day(until_us), (until_us - now_us) // DAY_US
    if until_us <= now_us:
        return _EXPIRED[language].format(who, name, on)
    return _EXPIRES[language][min(days, 2)].format(who, name, on, days)


def lasts(language: str, whose: str, name: str, until_us: int) -> str:
    """That certificates are in order again, and which of them ends first."""
    return _LASTS[language].format(_WHOSE[language][whose], name, _day(until_us))


def disk_refuses(language: str, why: int, since: str, fault: str, waiting_mb: float, room_mb: float) -> str:
    """That nothing can be kept. why: see diskspace.Why."""
    waiting, room = (quantity(round(mb, 1), "", language) for mb in (waiting_mb, room_mb))
    reason = _DISK_REFUSES[language][why]
    return _NOT_KEPT[language].format(why=reason, since=since, fault=fault, waiting=waiting, room=room)


def disk_low(language: str, free: int, total: int) -> str:
    """Both in bytes."""
    return _DISK_LOW[language].format(free=size(free, language), total=size(total, language))


def disk_well(language: str, free: int) -> str:
    return _DISK_WELL[language].format(size(free, language))


def size(count: int, language: str = "en") -> str:
    """Bytes in a unit that people read: 3.2 GB, 180 MB."""
    unit, per = ("GB", 1e9) if count >= 1e9 else ("MB", 1e6)
    return quantity(round(count / per, 1), unit, language)


def _day(us: int) -> str:
    """In UTC, as `edge-agent trust` shows it; some certificates end on the last day that there is."""
    return f"{EPOCH + timedelta(microseconds=us):%Y-%m-%d}"


def clock_not_set(language: str, now_us: int, floor_us: int | None) -> str:
    """What a clock shows that cannot be right. floor_us: what the journal has seen of a set one; both UTC µs."""
    behind = floor_us is not None and floor_us > now_us
    text = _CLOCK_NOT_SET[language][behind].format(_minute(now_us), _minute(floor_us) if floor_us is not None else "")
    return _CLOCK_MARKED[language].format(text)


def clock_stepped(language: str, at_us: int, by_us: int, now_us: int, zone: str) -> str:
    """By how much, in which direction, and when by the new clock."""
    return _CLOCK_STEPPED[language][by_us < 0].format(duration(abs(by_us), language), moment(at_us, now_us, zone))


def clock_alone(language: str, since_us: int, now_us: int, zone: str) -> str:
    """Since when nothing keeps the clock right that something once kept right."""
    return _CLOCK_ALONE[language].format(moment(since_us, now_us, zone))


def clock_right(language: str) -> str:
    """That there is nothing to say of the clock any more."""
    return _CLOCK_RIGHT[language]


def _minute(us: int) -> str:
    """In UTC, since a clock that was not set knows no zone of its own either."""
    return f"{EPOCH + timedelta(microseconds=us):%Y-%m-%d %H:%M} UTC"


def removed(language: str, title: str) -> str:
    """Why a warning ends whose signal has gone from the configuration."""
    return _REMOVED[language].format(title=title)


def not_known(language: str, title: str) -> str:
    """Why a warning ends of which the agent could not know when it started."""
    return _NOT_KNOWN[language].format(title=title)


def quantity(value: float | None, unit: str, language: str = "en", digits: int = DIGITS) -> str:
    """A number with its unit, decimal comma where the language has one. digits: significant ones, at most."""
    if value is None:
        return ""
    text = number(value, language, digits)
    return f"{text} {unit}" if unit else text


def number(value: float, language: str = "en", digits: int = DIGITS) -> str:
    magnitude = abs(value)
    # Adding 0.0 makes -0.0 a plain 0. Whole numbers are written out as long as a person can read them.
    text = f"{value:.0f}" if 99_999.5 <= magnitude < 1e15 and digits == DIGITS else f"{value + 0.0:.{digits}g}"
    return text if language == "en" else text.replace(".", ",")


def _digits(value: float | None, limit: float | None) -> int:
    """As many as show on which side of its limit the value lies: "60 is above 60" helps nobody."""
    if value is None or limit is None or value == limit:
        return DIGITS
    return next((n for n in range(DIGITS, EXACT) if number(value, digits=n) != number(limit, digits=n)), EXACT)


def moment(us: int, now_us: int, zone: str) -> str:
    """A time of day for people where they are; with its date when that is not the day of `now_us`."""
    here = ZoneInfo(zone)
    then, now = (EPOCH + timedelta(microseconds=each) for each in (us, now_us))
    same_day = then.astimezone(here).date() == now.astimezone(here).date()
    return then.astimezone(here).strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S")


def duration(span_us: int, language: str = "en") -> str:
    """A span in its largest fitting unit: 45 s, 12 min, 3 h, 2 days."""
    seconds = span_us / 1e6
    days = {"en": "days", "nl": "dagen", "de": "Tagen"}[language]
    hours = {"en": "h", "nl": "uur", "de": "Std."}[language]
    for size, name in ((172_800, days), (7_200, hours), (120, "min")):
        if seconds >= size:
            per = {days: 86_400, hours: 3_600, "min": 60}[name]
            return f"{seconds / per:.0f} {name}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{number(round(seconds, 1), language)} s"
