"""What a client is told about its tunnel: the configuration, and what is left of its session."""

from ipaddress import IPv4Address

from vpnd.config.model import ServerConfig
from vpnd.policy.leases import Pool
from vpnd.store.contract import Session
from vpnd.worker.messages import OpenReply

OWN_DPD_S = 10  # our own clients answer, and find a dead server soon
HOST_MASK = IPv4Address("255.255.255.255")


def granted(
    config: ServerConfig, pool: Pool, session: Session, now: float, *, is_own: bool
) -> OpenReply:
    """Return the answer to a CONNECT that is granted, without what belongs to one tunnel."""
    network, timers = config.network, config.session
    left = max(1, int(session.expires_at - now)) if session.expires_at else 0
    return OpenReply(
        session=session.id,
        user=session.user,
        netmask4=str(pool.ipv4.netmask if pool.ipv4 else HOST_MASK),
        prefix6=pool.ipv6.prefixlen if pool.ipv6 else 0,
        mtu=network.mtu,
        dns=[str(server) for server in network.dns],
        default_domain=network.default_domain,
        split_include=[str(prefix) for prefix in network.routes],
        split_exclude=[str(prefix) for prefix in network.exclude],
        server_name=config.server.name,
        dpd_s=min(timers.dpd_s, OWN_DPD_S) if is_own else timers.dpd_s,
        keepalive_s=timers.keepalive_s,
        idle_timeout_s=timers.idle_timeout_s,
        session_left_s=left,
        rekey_s=timers.rekey_s,
    )
