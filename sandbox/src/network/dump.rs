//! A namespace as it is now, read as a whole.
//!
//! The kernel marks a list that has changed while it was read: something that has always been there may be missing
//! then, of which no event will tell.

use std::pin::pin;

use futures_util::{Stream, StreamExt};
use rtnetlink::{
    Error, Handle,
    packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage, address::AddressMessage, link::LinkMessage,
        neighbour::NeighbourMessage, route::RouteMessage, rule::RuleMessage,
    },
};

use super::{NetworkError, model::Model, routes::Place};

/// Times that a namespace is read before it is left to itself for a while.
const ATTEMPTS: u32 = 3;

/// What a namespace was found to have.
#[derive(Debug)]
pub(super) enum Reading {
    /// All of it.
    Whole(Model),
    /// It changed whenever it was read, and something may be missing.
    Blurred(Model),
}

/// Reads a namespace by a connection that passes on the end of each list, which has the mark, too.
pub(super) struct Reader(Handle);

impl Reader {
    pub fn new(handle: Handle) -> Self {
        Self(handle)
    }

    /// Reads everything, a few times if it changes meanwhile.
    pub async fn read(&mut self) -> Result<Reading, NetworkError> {
        for _ in 1..ATTEMPTS {
            if let whole @ Reading::Whole(_) = self.read_once().await? {
                return Ok(whole);
            }
        }
        self.read_once().await
    }

    async fn read_once(&mut self) -> Result<Reading, NetworkError> {
        let (mut model, mut whole) = (Model::default(), true);
        for (what, message) in everything() {
            let failed = |source| NetworkError::List { what, source };
            let mut request = NetlinkMessage::from(message);
            request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let answers = self.0.request(request).map_err(failed)?;
            whole &= take(answers, &mut model).await.map_err(failed)?;
        }
        Ok(if whole { Reading::Whole(model) } else { Reading::Blurred(model) })
    }
}

/// What is asked for; links come first, since the others are on them.
fn everything() -> [(&'static str, RouteNetlinkMessage); 7] {
    let routes = |family| {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        ("routes", RouteNetlinkMessage::GetRoute(message))
    };
    let rules = |family| {
        let mut message = RuleMessage::default();
        message.header.family = family;
        ("rules", RouteNetlinkMessage::GetRule(message))
    };
    [
        ("links", RouteNetlinkMessage::GetLink(LinkMessage::default())),
        ("addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default())),
        routes(AddressFamily::Inet),
        routes(AddressFamily::Inet6),
        rules(AddressFamily::Inet),
        rules(AddressFamily::Inet6),
        ("neighbours", RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default())),
    ]
}

/// Takes a list in; whether nothing has changed while it was read.
async fn take(
    answers: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>>,
    model: &mut Model,
) -> Result<bool, Error> {
    let mut answers = pin!(answers);
    let mut whole = true;
    while let Some(answer) = answers.next().await {
        whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
        match answer.payload {
            NetlinkPayload::InnerMessage(message) => model.apply(&message, Place::Last),
            NetlinkPayload::Error(error) => return Err(Error::NetlinkError(error)),
            // A family that the kernel does not have ends with an error, and has nothing.
            NetlinkPayload::Done(_) => return Ok(whole),
            _ => {}
        }
    }
    Err(Error::RequestFailed)
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use rtnetlink::{
        packet_core::{
            DoneMessage, NLM_F_DUMP_INTR, NetlinkHeader, NetlinkMessage, NetlinkPayload,
        },
        packet_route::{RouteNetlinkMessage, link::LinkMessage},
    };

    use super::{Model, Reader, Reading, take};

    fn answer(
        flags: u16,
        payload: NetlinkPayload<RouteNetlinkMessage>,
    ) -> NetlinkMessage<RouteNetlinkMessage> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        NetlinkMessage::new(header, payload)
    }

    #[tokio::test]
    async fn a_list_is_whole_when_no_message_and_not_its_end_is_marked() {
        let link = || RouteNetlinkMessage::NewLink(LinkMessage::default()).into();
        for (mark, end, whole) in
            [(0, 0, true), (NLM_F_DUMP_INTR, 0, false), (0, NLM_F_DUMP_INTR, false)]
        {
            let done = NetlinkPayload::Done(DoneMessage::default());
            let list = [answer(mark, link()), answer(0, link()), answer(end, done)];
            let mut model = Model::default();
            assert_eq!(take(stream::iter(list), &mut model).await.unwrap(), whole);
            assert_eq!(model.links.len(), 1);
        }
    }

    #[tokio::test]
    async fn a_list_without_an_end_is_none() {
        let link = RouteNetlinkMessage::NewLink(LinkMessage::default()).into();
        let cut = stream::iter([answer(0, link)]);
        assert!(take(cut, &mut Model::default()).await.is_err());
    }

    #[tokio::test]
    async fn a_namespace_has_its_loopback_link() {
        let (mut connection, handle, _) = rtnetlink::new_connection().unwrap();
        connection.set_forward_done(true);
        tokio::spawn(connection);
        let (Reading::Whole(model) | Reading::Blurred(model)) =
            Reader::new(handle).read().await.unwrap();
        assert!(model.links.values().any(|link| link.loopback));
    }
}
