"""From the MTU of the path between the hosts to the MTU inside the tunnel.

    path MTU = IP header + UDP header (8) + DTLS record overhead + type byte (1) + inner packet

The record overhead is not known before the DTLS handshake, so the largest is taken.
"""

from vpnd.wire.dtls_record import MAX_OVERHEAD

MIN_MTU = 576  # RFC 791: every host takes a datagram of this size
IPV4_HEADER = 20
IPV6_HEADER = 40
UDP_HEADER = 8
TYPE_BYTE = 1


def tunnel_mtu(path_mtu: int, *, outer_ipv6: bool, wanted: int) -> int:
    """Return the largest inner packet to tell a client, in bytes, never below 576.

    `path_mtu` is what the client said of its link, `wanted` what the operator allows.
    """
    outer = (IPV6_HEADER if outer_ipv6 else IPV4_HEADER) + UDP_HEADER
    return max(MIN_MTU, min(wanted, path_mtu - outer - MAX_OVERHEAD - TYPE_BYTE))
