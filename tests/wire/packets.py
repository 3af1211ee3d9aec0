"""Packets for the tests of the packet path: built by hand and drawn by hypothesis.

`superpackets()` draws what a TUN read gives; `Packet.segments` is a slow and plain split of it.
"""

from dataclasses import dataclass, replace
from struct import pack, pack_into, unpack_from

from hypothesis import strategies as st

from vpnd.wire import virtio

FIN, PSH, ACK, ECE, CWR = 0x01, 0x08, 0x10, 0x40, 0x80


def rfc1071(data: bytes) -> int:
    """The checksum as RFC 1071 section 4.1 writes it, to compare with."""
    total = 0
    for index in range(0, len(data), 2):
        total += int.from_bytes(data[index : index + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True)
class Packet:
    """A TCP or UDP packet in its parts; `build` makes the bytes."""

    ip_version: int = 4
    protocol: int = 6
    source: bytes = bytes((10, 8, 0, 2))
    destination: bytes = bytes((192, 0, 2, 1))
    source_port: int = 50000
    destination_port: int = 443
    dont_fragment: bool = True
    number: int = 7  # IPv4 identification
    tos: int = 0
    ttl: int = 64
    ip_options: bytes = b""  # or IPv6 extension headers, whose first is a hop-by-hop one
    sequence: int = 1000
    acknowledgement: int = 5000
    flags: int = ACK
    window: int = 501
    tcp_options: bytes = b""
    payload: bytes = b""

    @property
    def upper(self) -> int:
        return (20 if self.ip_version == 4 else 40) + len(self.ip_options)

    @property
    def headers(self) -> int:
        return self.upper + (20 + len(self.tcp_options) if self.protocol == 6 else 8)

    def pseudo(self, length: int) -> bytes:
        return self.source + self.destination + pack("!HI", self.protocol, length)

    def build(self, *, partial: bool = False) -> bytes:
        """Return the bytes; `partial`: with the pseudo-header's sum for a checksum."""
        if self.protocol == 6:
            offset = (20 + len(self.tcp_options)) << 2
            upper = pack("!HH", self.source_port, self.destination_port)
            upper += pack("!II", self.sequence, self.acknowledgement)
            upper += pack("!BBHHH", offset, self.flags, self.window, 0, 0) + self.tcp_options
            at = 16
        else:
            length = 8 + len(self.payload)
            upper = pack("!HHHH", self.source_port, self.destination_port, length, 0)
            at = 6
        body = bytearray(upper + self.payload)
        pseudo = self.pseudo(len(body))
        if partial:
            value = ~rfc1071(pseudo) & 0xFFFF
        else:
            value = rfc1071(pseudo + body)
            if self.protocol == 17:
                value = value or 0xFFFF
        pack_into("!H", body, at, value)
        return self._ip_header(len(body)) + bytes(body)

    def _ip_header(self, length: int) -> bytes:
        if self.ip_version == 6:
            proto = 0 if self.ip_options else self.protocol
            head = pack("!IHBB", 6 << 28 | self.tos << 20, length + len(self.ip_options), proto,
                        self.ttl)  # fmt: skip
            return head + self.source + self.destination + self.ip_options
        size = 20 + len(self.ip_options)
        head = bytearray(
            pack("!BBHHHBBH", 0x40 | size >> 2, self.tos, size + length, self.number,
                 0x4000 if self.dont_fragment else 0, self.ttl, self.protocol, 0)
            + self.source + self.destination + self.ip_options
        )  # fmt: skip
        pack_into("!H", head, 10, rfc1071(head))
        return bytes(head)

    def frame(self, gso_size: int) -> bytes:
        """Return what a TUN read gives for this packet as a superpacket."""
        if self.protocol == 17:
            kind, check = virtio.GSO_UDP_L4, 6
        else:
            kind, check = (virtio.GSO_TCPV4 if self.ip_version == 4 else virtio.GSO_TCPV6), 16
        if self.protocol == 6 and self.flags & CWR:
            kind |= virtio.GSO_ECN
        return virtio.encode(kind, 0, gso_size, self.upper, check) + self.build(partial=True)

    def parts(self, gso_size: int) -> list["Packet"]:
        """Split, slowly and plainly."""
        starts = range(0, len(self.payload), gso_size)
        result = []
        for index, start in enumerate(starts):
            flags = self.flags
            if index:
                flags &= ~CWR
            if index < len(starts) - 1:
                flags &= ~(FIN | PSH)
            part = replace(
                self,
                payload=self.payload[start : start + gso_size],
                sequence=(self.sequence + start) & 0xFFFFFFFF,
                number=self.number if self.dont_fragment else (self.number + index) & 0xFFFF,
                flags=flags,
            )
            result.append(part)
        return result

    def segments(self, gso_size: int) -> list[bytes]:
        """Return the bytes of the parts."""
        return [part.build() for part in self.parts(gso_size)]


HOP_BY_HOP = bytes((0, 0, 1, 4, 0, 0, 0, 0))  # next header still to be set; PadN
words = st.integers(0, 0xFFFF)
options = st.integers(0, 10).flatmap(lambda n: st.binary(min_size=4 * n, max_size=4 * n))


@st.composite
def headers(draw: st.DrawFn, *, protocols: tuple[int, ...] = (6, 17)) -> Packet:
    """Draw a packet without payload."""
    version = draw(st.sampled_from((4, 6)))
    protocol = draw(st.sampled_from(protocols))
    address = st.binary(min_size=4, max_size=4) if version == 4 else st.binary(
        min_size=16, max_size=16
    )  # fmt: skip
    extra = b""
    if draw(st.integers(0, 5)) == 5:
        extra = bytes((1, 1, 1, 1)) if version == 4 else bytes((protocol,)) + HOP_BY_HOP[1:]
    return Packet(
        ip_version=version, protocol=protocol, source=draw(address), destination=draw(address),
        source_port=draw(words), destination_port=draw(words),
        dont_fragment=draw(st.booleans()), number=draw(words),
        tos=draw(st.integers(0, 255)), ttl=draw(st.integers(1, 255)), ip_options=extra,
        sequence=draw(st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(0xFFFF0000, 0xFFFFFFFF))),
        acknowledgement=draw(st.integers(0, 0xFFFFFFFF)), window=draw(words),
        flags=ACK | draw(st.sampled_from((0, PSH, FIN, FIN | PSH))),
        tcp_options=draw(options) if protocol == 6 else b"",
    )  # fmt: skip


@st.composite
def superpackets(
    draw: st.DrawFn, *, protocols: tuple[int, ...] = (6, 17), ecn: bool = True
) -> tuple[Packet, int]:
    """Draw a superpacket and its gso_size: from one byte to the largest the kernel makes."""
    packet = draw(headers(protocols=protocols))
    gso_size = draw(st.one_of(st.integers(8, 100), st.integers(500, 1500), st.just(9000)))
    count = draw(st.integers(1, 60))
    room = 65535 - packet.headers
    size = min(room, max(1, gso_size * count - draw(st.integers(0, gso_size - 1))))
    seed = draw(st.binary(min_size=16, max_size=64))
    payload = (seed * (size // len(seed) + 1))[:size]
    if draw(st.integers(0, 9)) == 9:
        payload = bytes(size)
    flags = packet.flags
    if ecn:
        flags |= draw(st.sampled_from((0, 0, ECE, CWR, ECE | CWR)))
    return replace(packet, payload=payload, flags=flags), gso_size


def sequence_of(packet: bytes) -> int:
    """The TCP sequence number of a packet without IP options."""
    at = 24 if packet[0] >> 4 == 4 else 44
    return int(unpack_from("!I", packet, at)[0])
