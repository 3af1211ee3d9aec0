"""virtio_net_hdr: what the kernel puts before each packet of a TUN (linux/virtio_net.h).

    0       1          2         4          6            8             10
    | flags | gso_type | hdr_len | gso_size | csum_start | csum_offset |

Native byte order (IFF_VNET_HDR without TUNSETVNETLE).  Offsets count from the IP header.
With NEEDS_CSUM the checksum field at csum_start + csum_offset holds the sum of the
pseudo-header, and the checksum from csum_start to the end is still to be put there.
"""

from struct import Struct

from vpnd.errors import Malformed

HEADER = Struct("=BBHHHH")
SIZE = HEADER.size

NEEDS_CSUM = 1
DATA_VALID = 2  # the kernel has checked the checksum; TUN writes ignore it

GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_UDP_L4 = 5  # UDP_SEGMENT trains; the older GSO_UDP (3) is fragmentation and never offered
GSO_ECN = 0x80  # beside TCP: the first segment carries CWR

PLAIN = bytes(SIZE)  # before a packet that is complete as it stands

_FLAGS = NEEDS_CSUM | DATA_VALID
_GSO_TYPES = frozenset((GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4))


def decode(frame: bytes | memoryview) -> tuple[bool, int, int, int, int]:
    """Return (needs_csum, gso_type, gso_size, csum_start, csum_offset) of a frame.

    `gso_type` comes without the ECN bit, and hdr_len not at all: it is a hint that several
    kernels fill in wrongly.  Raises Malformed for values that were not negotiated.
    """
    if len(frame) < SIZE:
        raise Malformed("short virtio_net_hdr")
    flags, kind, _hdr_len, gso_size, csum_start, csum_offset = HEADER.unpack_from(frame)
    if kind == GSO_ECN:
        raise Malformed("virtio_net_hdr: ECN without TCP")
    kind &= ~GSO_ECN
    if flags & ~_FLAGS or kind not in _GSO_TYPES:
        raise Malformed(f"virtio_net_hdr: flags {flags:#x}, GSO type {kind:#x}")
    return bool(flags & NEEDS_CSUM), kind, gso_size, csum_start, csum_offset


def encode(gso_type: int, hdr_len: int, gso_size: int, csum_start: int, csum_offset: int) -> bytes:
    """Return the header of a superpacket, whose checksum the kernel shall complete."""
    return HEADER.pack(NEEDS_CSUM, gso_type, hdr_len, gso_size, csum_start, csum_offset)
