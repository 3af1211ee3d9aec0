"""IPv4 and IPv6 header fields, read at their offsets (RFC 791 section 3.1, RFC 8200 section 3).

    IPv4   0 version, IHL | 1 TOS | 2 total length | 4 id | 6 flags, fragment | 8 TTL
           9 protocol | 10 checksum | 12 source | 16 destination | 20 options
    IPv6   0 version, class, flow label | 4 payload length | 6 next header | 7 hop limit
           8 source | 24 destination | 40 extension headers, upper layer

Nothing is decoded into an object: the callers are on the packet path.
"""

from vpnd.errors import Malformed

IPV4_HEADER = 20
IPV6_HEADER = 40
MAX_PACKET = 0xFFFF  # what the length field of IPv4 can say

TCP = 6
UDP = 17
ICMPV6 = 58

IPV4_DONT_FRAGMENT = 0x4000  # in the 16-bit word at offset 6
IPV4_FRAGMENT = 0x3FFF  # more fragments, or an offset

IPV6_HOP_BY_HOP = 0
IPV6_ROUTING = 43
IPV6_FRAGMENT = 44
IPV6_DESTINATION = 60
MAX_EXTENSIONS = 8  # RFC 8200 section 4.1 names five, of which one may come twice


def version(packet: bytes | memoryview) -> int:
    """Return 4 or 6 for an IP packet that is as long as its header says; raise Malformed."""
    size = len(packet)
    if size >= IPV4_HEADER:
        first = packet[0]
        if 0x45 <= first <= 0x4F:
            if packet[2] << 8 | packet[3] == size >= (first & 15) << 2:
                return 4
        elif first >> 4 == 6 and (packet[4] << 8 | packet[5]) + IPV6_HEADER == size:
            return 6
    raise Malformed("not an IP packet of the length it claims")


def source(packet: bytes | memoryview) -> bytes:
    """Return the source address, 4 or 16 bytes; raise Malformed (see `version`)."""
    if version(packet) == 4:
        return bytes(packet[12:16])
    return bytes(packet[8:24])


def destination(packet: bytes | memoryview) -> bytes:
    """Return the destination address, 4 or 16 bytes; raise Malformed (see `version`)."""
    if version(packet) == 4:
        return bytes(packet[16:20])
    return bytes(packet[24:40])


def upper_layer(packet: bytes | memoryview) -> tuple[int, int]:
    """Return the protocol behind the IP header (and IPv6 extensions) and its offset.

    A fragment of IPv6 is reported as protocol 44: what is behind it need not be a header.
    The offset is within the packet.  Raises Malformed.
    """
    if version(packet) == 4:
        return packet[9], (packet[0] & 15) << 2
    protocol, at = packet[6], IPV6_HEADER
    for _ in range(MAX_EXTENSIONS + 1):
        if protocol not in (IPV6_HOP_BY_HOP, IPV6_ROUTING, IPV6_DESTINATION):
            return protocol, at
        if at + 8 > len(packet):
            break
        protocol, at = packet[at], at + 8 + packet[at + 1] * 8
        if at > len(packet):
            break
    raise Malformed("IPv6 extension headers")
