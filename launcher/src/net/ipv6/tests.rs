use dhcproto::v6::{Decodable, Decoder, DhcpOption, Message, MessageType, Status};

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0x12, 0x34, 0x56];
const OURS: &[u8] = &[0, 3, 0, 1, 2, 0, 0, 0, 0, 0];

fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn router() -> Router {
    Router {
        mac: MAC,
        ipv6: Ipv6::of("tap0-router", DEFAULT_NETWORK, ip("2001:db8::7")).unwrap(),
        mtu: 1400,
        resolver: Resolver {
            servers6: vec![ip("2001:db8::53")],
            search: vec!["svc.example".into()],
            ..Resolver::default()
        },
    }
}

/// A message of DHCPv6 of this kind, with options by their codes.
fn message(kind: u8, options: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![kind, 1, 2, 3];
    for (code, data) in options {
        bytes.extend(code.to_be_bytes());
        bytes.extend((data.len() as u16).to_be_bytes());
        bytes.extend(*data);
    }
    bytes
}

/// An association of addresses, with these in it.
fn association(id: u8, addresses: &[&str]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, id];
    bytes.extend([0; 8]);
    for address in addresses {
        let lifetimes = [0; 8];
        bytes.extend([0, 5, 0, 24]);
        bytes.extend(ip(address).octets());
        bytes.extend(lifetimes);
    }
    bytes
}

fn answer(message: &[u8]) -> Option<Message> {
    let Router { ipv6, resolver, .. } = router();
    let bytes = dhcp::answer(&ipv6, &resolver, message)?;
    Some(Message::decode(&mut Decoder::new(&bytes)).unwrap())
}

#[test]
fn a_client_is_answered_by_the_rules_of_its_message() {
    const CLIENT: (u16, &[u8]) = (1, b"client");
    const SERVER: (u16, &[u8]) = (2, OURS);
    const OTHER: (u16, &[u8]) = (2, b"other");
    const RAPID: (u16, &[u8]) = (14, b"");
    let mine = association(1, &["fd10:0:2::2"]);
    let theirs = association(1, &["2001:db8::2"]);
    let (mine, theirs) = ((3, mine.as_slice()), (3, theirs.as_slice()));
    type Case<'a> = (u8, &'a [(u16, &'a [u8])], Option<MessageType>);
    let cases: &[Case] = &[
        (1, &[CLIENT, mine], Some(MessageType::Advertise)),
        (1, &[CLIENT, RAPID, mine], Some(MessageType::Reply)),
        (1, &[mine], None),
        (1, &[CLIENT, SERVER, mine], None),
        (3, &[CLIENT, SERVER, mine], Some(MessageType::Reply)),
        (3, &[CLIENT, OTHER, mine], None),
        (3, &[CLIENT, mine], None),
        (4, &[CLIENT, mine], Some(MessageType::Reply)),
        (4, &[CLIENT], None),
        (5, &[CLIENT, SERVER, mine], Some(MessageType::Reply)),
        (6, &[CLIENT, theirs], Some(MessageType::Reply)),
        (8, &[CLIENT, SERVER, mine], Some(MessageType::Reply)),
        (9, &[CLIENT, SERVER, mine], Some(MessageType::Reply)),
        (11, &[], Some(MessageType::Reply)),
        (11, &[OTHER], None),
        (7, &[CLIENT, SERVER], None),
        (200, &[CLIENT, SERVER], None),
    ];
    for (kind, options, expected) in cases {
        let got = answer(&message(*kind, options)).map(|answer| answer.msg_type());
        assert_eq!(got, *expected, "{kind} {options:?}");
    }
}

#[test]
fn the_first_association_gets_the_address_and_its_client_hears_of_dns() {
    let (first, second) = (association(1, &[]), association(9, &[]));
    let said = answer(&message(1, &[(1, b"client"), (3, &first), (3, &second)])).unwrap();
    let options: Vec<_> = said.opts().iter().collect();
    let granted = |id: u32| {
        let mut all = options.iter().filter_map(|option| match option {
            DhcpOption::IANA(one) if one.id == id => one.opts.iter().next(),
            _ => None,
        });
        all.next()
    };
    assert!(matches!(granted(1), Some(DhcpOption::IAAddr(one)) if one.addr == ip("fd10:0:2::2")));
    assert!(matches!(granted(9), Some(DhcpOption::StatusCode(code)) if code.status == Status::NoAddrsAvail));
    assert!(options.contains(&&DhcpOption::ClientId(b"client".to_vec())));
    assert!(options.contains(&&DhcpOption::ServerId(OURS.to_vec())));
    assert!(options.contains(&&DhcpOption::DomainNameServers(vec![ip("2001:db8::53")])));
}

#[test]
fn an_address_of_another_network_is_not_confirmed() {
    for (address, expected) in [
        ("fd10:0:2::2", Status::Success),
        ("2001:db8::2", Status::NotOnLink),
    ] {
        let said = answer(&message(4, &[(1, b"client"), (3, &association(1, &[address]))])).unwrap();
        let mut codes = said.opts().iter().filter_map(|option| match option {
            DhcpOption::StatusCode(code) => Some(code.status),
            _ => None,
        });
        assert_eq!(codes.next(), Some(expected), "{address}");
    }
}

#[test]
fn what_a_guest_sends_in_pieces_or_in_excess_is_no_harm() {
    let router = router();
    let whole = message(1, &[(1, b"client"), (3, &association(1, &["fd10:0:2::2"]))]);
    let frame = |message: &[u8]| {
        let mut frame = packet::udp(MAC, ip("fe80::2"), ip("ff02::1:2"), (546, 547), message);
        frame[6..12].copy_from_slice(&MAC);
        frame
    };
    assert!(router.answer(&frame(&whole)).is_some());
    for len in 0..whole.len() {
        router.answer(&frame(&whole[..len]));
    }
    let full = frame(&whole);
    for len in 0..full.len() {
        router.answer(&full[..len]);
    }
    for at in 0..full.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut frame = full.clone();
            frame[at] = value;
            router.answer(&frame);
        }
    }
    // Many associations: a few are answered.
    let many: Vec<_> = (0..50).map(|id| association(id, &[])).collect();
    let options: Vec<(u16, &[u8])> = many.iter().map(|one| (3, one.as_slice())).collect();
    let said = answer(&message(
        1,
        &[&[(1, b"client".as_slice())], options.as_slice()].concat(),
    ))
    .unwrap();
    let granted = said
        .opts()
        .iter()
        .filter(|option| matches!(option, DhcpOption::IANA(_)));
    assert_eq!(granted.count(), 4);
}

#[test]
fn an_error_is_passed_on_if_it_quotes_what_the_guest_has_sent() {
    let router = router();
    let error = |quoted: &str| {
        let quoted = smoltcp::wire::Ipv6Repr {
            src_addr: ip(quoted),
            dst_addr: ip("2001:db8:1::1"),
            next_header: smoltcp::wire::IpProtocol::Tcp,
            payload_len: 4,
            hop_limit: 9,
        };
        let message = Icmpv6Repr::PktTooBig {
            mtu: 1280,
            header: quoted,
            data: &[0, 80, 0, 81],
        };
        packet::icmp([2; 6], ip("2001:db8::1"), ip("2001:db8::7"), 64, &message)
    };
    let passed = router.answer(&error("2001:db8::7")).unwrap();
    let parsed = Packet::parse(&passed).unwrap();
    assert_eq!((parsed.destination, parsed.hop_limit), (ip("fd10:0:2::2"), 63));
    let Body::Error(message) = parsed.body else {
        panic!("it is an error no more");
    };
    assert_eq!(message[16..32], ip("fd10:0:2::2").octets());
    let checked = smoltcp::wire::Icmpv6Packet::new_checked(message).unwrap();
    assert!(checked.verify_checksum(&parsed.source, &parsed.destination));
    assert_eq!(router.answer(&error("2001:db8::8")), None);
    let mut damaged = error("2001:db8::7");
    *damaged.last_mut().unwrap() ^= 1;
    assert_eq!(router.answer(&damaged), None);
}
