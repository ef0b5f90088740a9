//! DHCPv6 server for one guest (RFC 8415): one address, for the first of its associations.

use std::net::Ipv6Addr;

use dhcproto::v6::{
    DhcpOption, DhcpOptions, Encodable, Encoder, IAAddr, IANA, Message, MessageType, OptionCode, Status,
    StatusCode,
};

use super::Ipv6;
use crate::net::dhcp::LEASE_SECONDS;
use crate::net::masquerade::GATEWAY_MAC;
use crate::net::resolver::Resolver;

/// Associations of one message that are answered.
const MAX_ASSOCIATIONS: usize = 4;
/// The longest name of a client (§11.1).
const MAX_DUID: usize = 130;
/// A client takes this server's offer without waiting for others' (§21.8).
const AT_ONCE: u8 = 255;

/// A request, as far as the answer depends on it.
#[derive(Default)]
struct Request<'a> {
    kind: u8,
    xid: [u8; 3],
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    rapid: bool,
    associations: Vec<Association>,
}

/// An association of addresses (IA_NA, §21.4).
struct Association {
    id: u32,
    addresses: Vec<Ipv6Addr>,
}

/// The options of a message or of an option, as far as they are whole (§21.1).
fn options(mut bytes: &[u8]) -> impl Iterator<Item = (OptionCode, &[u8])> {
    std::iter::from_fn(move || {
        let (code, rest) = bytes.split_first_chunk::<2>()?;
        let (len, rest) = rest.split_first_chunk::<2>()?;
        let (data, rest) = rest.split_at_checked(u16::from_be_bytes(*len).into())?;
        bytes = rest;
        Some((u16::from_be_bytes(*code).into(), data))
    })
}

impl<'a> Request<'a> {
    /// Only what is needed is decoded, as with DHCPv4.
    fn parse(message: &'a [u8]) -> Option<Request<'a>> {
        let ([kind, xid @ ..], rest) = message.split_first_chunk::<4>()?;
        let mut request = Request {
            kind: *kind,
            xid: *xid,
            ..Request::default()
        };
        for (code, data) in options(rest) {
            match code {
                OptionCode::ClientId if data.len() <= MAX_DUID => request.client = Some(data),
                OptionCode::ServerId => request.server = Some(data),
                OptionCode::RapidCommit => request.rapid = true,
                OptionCode::IANA if request.associations.len() < MAX_ASSOCIATIONS => {
                    let (id, rest) = data.split_first_chunk::<4>()?;
                    let addresses = options(rest.get(8..)?).filter(|(code, _)| *code == OptionCode::IAAddr);
                    request.associations.push(Association {
                        id: u32::from_be_bytes(*id),
                        addresses: addresses
                            .filter_map(|(_, data)| Some(Ipv6Addr::from(*data.first_chunk::<16>()?)))
                            .collect(),
                    });
                }
                _ => {}
            }
        }
        Some(request)
    }
}

/// Who we are: a DUID of the link-layer address (§11.4).
fn own_name() -> Vec<u8> {
    let mut name = vec![0, 3, 0, 1];
    name.extend(GATEWAY_MAC);
    name
}

/// What is answered to a message, if anything.
pub(super) fn answer(ipv6: &Ipv6, resolver: &Resolver, message: &[u8]) -> Option<Vec<u8>> {
    let request = Request::parse(message)?;
    let own_name = own_name();
    let guest = ipv6.address.addr();
    let kind = MessageType::from(request.kind);
    // Which messages must name the server, and which must not (§16).
    let meant = match (kind, request.server) {
        (MessageType::Solicit | MessageType::Confirm | MessageType::Rebind, server) => server.is_none(),
        (MessageType::InformationRequest, server) => server.is_none_or(|server| server == own_name),
        (_, server) => server == Some(&own_name),
    };
    if !meant || (request.client.is_none() && kind != MessageType::InformationRequest) {
        return None;
    }
    let mut answer = Message::new_with_id(MessageType::Reply, request.xid);
    let said = answer.opts_mut();
    match kind {
        MessageType::Solicit | MessageType::Request | MessageType::Renew | MessageType::Rebind => {
            for (at, association) in request.associations.iter().enumerate() {
                said.insert(DhcpOption::IANA(granted(
                    association.id,
                    (at == 0).then_some(guest),
                )));
            }
        }
        MessageType::Confirm => {
            let addresses = request.associations.iter().flat_map(|one| &one.addresses);
            let status = match addresses.clone().count() {
                0 => return None,
                _ if addresses.clone().all(|address| ipv6.address.contains(address)) => Status::Success,
                _ => Status::NotOnLink,
            };
            said.insert(status_code(status));
        }
        MessageType::Decline => {
            log::warn!("the guest says that its address {guest} is in use");
            said.insert(status_code(Status::Success));
        }
        MessageType::Release => said.insert(status_code(Status::Success)),
        MessageType::InformationRequest => {}
        _ => return None,
    }
    if kind == MessageType::Solicit && request.rapid {
        said.insert(DhcpOption::RapidCommit);
    } else if kind == MessageType::Solicit {
        said.insert(DhcpOption::Preference(AT_ONCE));
        answer.set_msg_type(MessageType::Advertise);
    }
    let said = answer.opts_mut();
    if let Some(client) = request.client {
        said.insert(DhcpOption::ClientId(client.to_vec()));
    }
    said.insert(DhcpOption::ServerId(own_name));
    configuration(resolver, said);
    let mut bytes = Vec::new();
    answer.encode(&mut Encoder::new(&mut bytes)).ok()?;
    log::debug!("DHCPv6: {kind:?} answered");
    Some(bytes)
}

/// An association with its address, or without one.
fn granted(id: u32, address: Option<Ipv6Addr>) -> IANA {
    let mut opts = DhcpOptions::default();
    opts.insert(match address {
        Some(addr) => DhcpOption::IAAddr(IAAddr {
            addr,
            preferred_life: LEASE_SECONDS,
            valid_life: LEASE_SECONDS,
            opts: DhcpOptions::default(),
        }),
        None => status_code(Status::NoAddrsAvail),
    });
    // When to renew is left to the client (§21.4).
    IANA {
        id,
        t1: 0,
        t2: 0,
        opts,
    }
}

fn status_code(status: Status) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode {
        status,
        msg: String::new(),
    })
}

fn configuration(resolver: &Resolver, said: &mut DhcpOptions) {
    if !resolver.servers6.is_empty() {
        said.insert(DhcpOption::DomainNameServers(resolver.servers6.clone()));
    }
    let search = resolver.search_names();
    if !search.is_empty() {
        said.insert(DhcpOption::DomainSearchList(search));
    }
}
