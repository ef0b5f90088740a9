use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0x12, 0x34, 0x56];
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);

fn offer() -> Offer {
    Offer {
        mac: MAC,
        lease: Lease {
            server: GATEWAY,
            address: "10.0.2.2/24".parse().unwrap(),
            router: Some(GATEWAY),
            routes: Vec::new(),
        },
        mtu: 1400,
        hostname: "ledger".into(),
        resolver: Resolver {
            servers6: vec![],
            servers: vec![Ipv4Addr::new(192, 0, 2, 53)],
            search: vec!["example.com".into()],
        },
    }
}

fn request(kind: MessageType, options: Vec<DhcpOption>, ciaddr: Ipv4Addr) -> Vec<u8> {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(7, ciaddr, none, none, none, &MAC);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    for option in options {
        message.opts_mut().insert(option);
    }
    let mut packet = Vec::new();
    message.encode(&mut Encoder::new(&mut packet)).unwrap();
    packet
}

#[test]
fn each_request_has_its_answer() {
    use DhcpOption::{RequestedIpAddress, ServerIdentifier};
    use MessageType::*;
    let none = Ipv4Addr::UNSPECIFIED;
    let other = Ipv4Addr::new(10, 0, 2, 77);
    let all = Ipv4Addr::BROADCAST;
    let cases = [
        (
            "who seeks a server",
            request(Discover, vec![], none),
            Some((Offer, GUEST, all)),
        ),
        (
            "who took our offer",
            request(
                Request,
                vec![ServerIdentifier(GATEWAY), RequestedIpAddress(GUEST)],
                none,
            ),
            Some((Ack, GUEST, all)),
        ),
        (
            "who took another's",
            request(
                Request,
                vec![ServerIdentifier(other), RequestedIpAddress(GUEST)],
                none,
            ),
            None,
        ),
        (
            "who was here before",
            request(Request, vec![RequestedIpAddress(GUEST)], none),
            Some((Ack, GUEST, all)),
        ),
        (
            "who was elsewhere before",
            request(Request, vec![RequestedIpAddress(other)], none),
            Some((Nak, none, all)),
        ),
        (
            "who renews",
            request(Request, vec![], GUEST),
            Some((Ack, GUEST, GUEST)),
        ),
        (
            "who renews what it has not",
            request(Request, vec![], other),
            Some((Nak, none, all)),
        ),
        (
            "who asks for options only",
            request(Inform, vec![], GUEST),
            Some((Ack, none, GUEST)),
        ),
        ("who goes", request(Release, vec![], GUEST), None),
        (
            "who found its address in use",
            request(Decline, vec![], none),
            None,
        ),
    ];
    for (who, packet, expected) in cases {
        let answer = offer().answer(&packet).map(|answer| {
            assert_eq!(
                (answer.message.xid(), answer.message.opcode()),
                (7, Opcode::BootReply)
            );
            let kind = answer.message.opts().msg_type().unwrap();
            (kind, answer.message.yiaddr(), answer.to)
        });
        assert_eq!(answer, expected, "{who}");
    }
}

#[test]
fn nobody_else_is_answered() {
    let discover = request(MessageType::Discover, vec![], Ipv4Addr::UNSPECIFIED);
    assert!(offer().answer(&discover).is_some());
    let with = |at: usize, byte: u8| {
        let mut packet = discover.clone();
        packet[at] = byte;
        offer().answer(&packet).is_some()
    };
    assert!(!with(0, 2), "a reply");
    assert!(!with(1, 6), "no Ethernet");
    assert!(!with(2, 255), "a length of address that does not fit");
    assert!(!with(24, 10), "by a relay");
    assert!(!with(28, 9), "another station");
}

#[test]
fn packets_of_any_kind_do_no_harm() {
    let options = vec![
        DhcpOption::RequestedIpAddress(GUEST),
        DhcpOption::DomainSearch(vec!["a.example.com".parse().unwrap()]),
        DhcpOption::ClientIdentifier(MAC.to_vec()),
        DhcpOption::ParameterRequestList(vec![OptionCode::Router; 20]),
    ];
    let packet = request(MessageType::Request, options, Ipv4Addr::UNSPECIFIED);
    for len in 0..packet.len() {
        let _ = offer().answer(&packet[..len]);
    }
    // A generator of our own: the same packets every time.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for _ in 0..200_000 {
        let mut packet = packet.clone();
        packet.resize(236 + 4 + random() % 512, random() as u8);
        for _ in 0..1 + random() % 24 {
            // The options, which are decoded freely, and now and then the rest.
            let from = if random() % 8 == 0 { 0 } else { 240 };
            let at = from + random() % (packet.len() - from).max(1);
            if let Some(byte) = packet.get_mut(at) {
                *byte = random() as u8;
            }
        }
        let _ = offer().answer(&packet);
    }
}
