"""The TUN interface: N queues with virtio headers that nobody but root can join.

The interface lives as long as one queue is open; the helper keeps none.  Constants are those of
linux/if_tun.h.
"""

import contextlib
import errno
import fcntl
import os
import struct

from pyroute2 import IPRoute

from helper import sysctl
from helper.messages import OpenTun, Refused

TUNSETIFF = 0x400454CA
TUNSETOWNER = 0x400454CC
IFF_TUN = 0x0001
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000
IFREQ = struct.Struct("16sH22x")  # struct ifreq: name, flags, room for the longest member
SETTINGS = {  # nothing is to come into the tunnel that no session sent
    "ipv6/conf/{}/addr_gen_mode": "1",  # IN6_ADDR_GEN_MODE_NONE: no link-local address
    "ipv6/conf/{}/autoconf": "0",
    "ipv6/conf/{}/accept_ra": "0",
    "ipv6/conf/{}/disable_ipv6": "0",  # the host's default may be 1; here it is ours to say
    "ipv4/conf/{}/send_redirects": "0",
    "ipv4/conf/{}/accept_redirects": "0",
}


def open_queues(interface: str, request: OpenTun) -> tuple[int, list[int]]:
    """Return the new interface's index and a non-blocking fd for each queue; it is down.

    Raises Refused when it exists already, when there is no TUN device, or when somebody joined
    before the owner was set.
    """
    fds: list[int] = []
    with contextlib.ExitStack() as unless_all_well:
        for number in range(request.queues):
            fds.append(_open_device())
            unless_all_well.callback(os.close, fds[-1])
            _attach(fds[-1], interface, first=number == 0)
            if number == 0:  # from here on only root may join
                fcntl.ioctl(fds[-1], TUNSETOWNER, 0)
        index = _settle(interface, request)
        unless_all_well.pop_all()
    return index, fds


def _open_device() -> int:
    try:
        return os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise Refused(
            f"/dev/net/tun cannot be opened ({exc.strerror}): "
            "modprobe tun, or give this container the device"
        ) from exc


def _attach(fd: int, interface: str, *, first: bool) -> None:
    flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE | (IFF_TUN_EXCL if first else 0)
    try:
        fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(interface.encode(), flags))
    except OSError as exc:
        if exc.errno not in (errno.EBUSY, errno.EEXIST):
            raise
        raise Refused(
            f"{interface} exists already: "
            "end the program that made it, or choose another network.interface"
        ) from exc


def _settle(interface: str, request: OpenTun) -> int:
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname=interface)
        netlink.link("set", index=index, txqlen=request.tx_queue_len)
        (link,) = netlink.get_links(index)
    data = link.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    names = "IFLA_TUN_NUM_QUEUES", "IFLA_TUN_NUM_DISABLED_QUEUES"
    if [data.get_attr(name) for name in names] != [request.queues, 0]:
        raise Refused(f"somebody else joined {interface} while it was made; look who, try again")
    for path, value in SETTINGS.items():
        sysctl.write(path.format(interface), value)
    return int(index)
