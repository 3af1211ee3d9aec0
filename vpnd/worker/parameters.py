"""What a client is told about its tunnel."""

from base64 import b64decode
from ipaddress import IPv4Address, IPv6Interface, ip_address, ip_network

from vpnd.wire.tunnel_params import DtlsParams, TunnelParams
from vpnd.worker.messages import OpenReply


def tunnel_params(
    reply: OpenReply, mtu: int, base_mtu: int, port: int, app_id: bytes
) -> TunnelParams:
    """Return what the client is told: the master's decisions, plus this connection's own."""
    dtls = DtlsParams(port, app_id, reply.dpd_s, reply.keepalive_s) if app_id else None
    return TunnelParams(
        address4=IPv4Address(reply.address4) if reply.address4 else None,
        netmask4=IPv4Address(reply.netmask4),
        address6=IPv6Interface(f"{reply.address6}/{reply.prefix6}") if reply.address6 else None,
        dns=tuple(ip_address(server) for server in reply.dns),
        default_domain=reply.default_domain,
        split_include=tuple(ip_network(prefix) for prefix in reply.split_include),
        split_exclude=tuple(ip_network(prefix) for prefix in reply.split_exclude),
        tunnel_all_dns=not reply.split_include,
        mtu=mtu,
        base_mtu=base_mtu,
        dpd_s=reply.dpd_s,
        keepalive_s=reply.keepalive_s,
        idle_timeout_s=reply.idle_timeout_s,
        session_timeout_s=reply.session_left_s,
        rekey_time_s=reply.rekey_s,
        rekey_method="new-tunnel",
        server_name=reply.server_name,
        dtls=dtls,
        renewed=tuple(b64decode(each) for each in reply.renewed),
    )
