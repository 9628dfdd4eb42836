//! The redirect between a link and its tap: one filter on the ingress hook of each.
//!
//! The filter has the last preference, so that an engine's own filters come first. A qdisc that is there already is used and
//! stays; one of ours goes with the redirect.

use std::os::fd::{AsRawFd, OwnedFd};

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::{
    Error, Handle,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        RouteNetlinkMessage,
        tc::{
            TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
        },
    },
};
use rustix::io::Errno;

/// ETH_P_ALL in network byte order, as a filter's protocol is given.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// `ffff:fff2`: the ingress hook, whether its qdisc is `ingress` or `clsact`.
const INGRESS_HOOK: TcHandle = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };

/// Of our filters, and of nobody else's: the kernel gives preferences from 0xc000 downwards.
const PREFERENCE: u16 = u16::MAX;

/// Of the filter that lets answers pass to sockets of the namespace: before the other one.
const EXCEPTION: u16 = PREFERENCE - 1;

const OURS: [u16; 2] = [PREFERENCE, EXCEPTION];

/// What is on the ingress hook of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// No qdisc.
    Free,
    /// A qdisc that is not ours.
    Taken,
    /// A qdisc with nothing but a filter of a sandbox that is gone.
    Abandoned,
}

/// Looks at a link's ingress hook; a filter that a dead sandbox left there is taken away.
pub(super) async fn look(handle: &Handle, link: u32) -> Result<Hook, Error> {
    if !has_qdisc(handle, link).await? {
        return Ok(Hook::Free);
    }
    let filters = filters(handle, link).await?;
    let (ours, theirs): (Vec<u16>, Vec<u16>) =
        filters.iter().partition(|preference| OURS.contains(preference));
    if ours.is_empty() {
        return Ok(Hook::Taken);
    }
    for preference in ours {
        remove_filter(handle, link, preference).await?;
    }
    Ok(if theirs.is_empty() { Hook::Abandoned } else { Hook::Taken })
}

/// Sends every frame that comes in on `from` out of `to`, as the program says if there is one.
pub(super) async fn add(
    handle: &Handle,
    from: u32,
    to: u32,
    hook: Hook,
    program: Option<&OwnedFd>,
) -> Result<(), Error> {
    if hook == Hook::Free {
        handle.qdisc().add(from.cast_signed()).ingress().execute().await?;
    }
    if let Some(program) = program {
        return add_program(handle, from, program, PREFERENCE).await;
    }
    let filter = handle.traffic_filter(from.cast_signed()).add().ingress();
    filter.priority(PREFERENCE).protocol(ALL_PROTOCOLS).redirect(to)?.execute().await
}

/// Lets a program except what comes in from the redirect.
pub(super) async fn except(handle: &Handle, link: u32, program: &OwnedFd) -> Result<(), Error> {
    add_program(handle, link, program, EXCEPTION).await
}

/// Lets a program decide on every frame that comes in.
async fn add_program(
    handle: &Handle,
    link: u32,
    program: &OwnedFd,
    preference: u16,
) -> Result<(), Error> {
    let options = [
        TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
        TcFilterBpfOption::ProgName("kata".into()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    let mut message = filter_message(link, preference);
    message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.into()));
    message.attributes.push(TcAttribute::Options(options.map(TcOption::Bpf).into()));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewTrafficFilter(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    acknowledged(handle, request).await
}

/// Names a filter of ours on the ingress hook of a link.
fn filter_message(link: u32, preference: u16) -> TcMessage {
    let mut message = TcMessage::with_index(link.cast_signed());
    message.header.parent = INGRESS_HOOK;
    message.header.info = u32::from(TcHandle { major: preference, minor: ALL_PROTOCOLS });
    message
}

/// Takes our filters away, and the qdisc if it is `ours`. What is gone already, with its link or without, is no error.
pub(super) async fn remove(handle: &Handle, link: u32, ours: bool) -> Result<(), Error> {
    if ours {
        let mut request = handle.qdisc().del(link.cast_signed());
        let message = request.message_mut();
        message.header.parent = TcHandle::INGRESS;
        message.header.handle = TcHandle { major: 0xffff, minor: 0 };
        return unless_gone(request.execute().await);
    }
    for preference in OURS {
        unless_gone(remove_filter(handle, link, preference).await)?;
    }
    Ok(())
}

async fn remove_filter(handle: &Handle, link: u32, preference: u16) -> Result<(), Error> {
    let message = filter_message(link, preference);
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::DelTrafficFilter(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    acknowledged(handle, request).await
}

pub(super) async fn acknowledged(
    handle: &Handle,
    request: NetlinkMessage<RouteNetlinkMessage>,
) -> Result<(), Error> {
    let mut answers = handle.clone().request(request)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(Error::NetlinkError(error));
        }
    }
    Ok(())
}

async fn has_qdisc(handle: &Handle, link: u32) -> Result<bool, Error> {
    let mut found = handle.qdisc().get().index(link.cast_signed()).execute();
    while let Some(message) = found.try_next().await? {
        // The kernel lists those of other links, too.
        if message.header.index == link.cast_signed() && message.header.parent == TcHandle::INGRESS
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Preferences of the filters on the hook.
async fn filters(handle: &Handle, link: u32) -> Result<Vec<u16>, Error> {
    let found: Vec<TcMessage> =
        handle.traffic_filter(link.cast_signed()).get().ingress().execute().try_collect().await?;
    let mut preferences: Vec<u16> =
        found.iter().map(|message| TcHandle::from(message.header.info).major).collect();
    preferences.dedup();
    Ok(preferences)
}

pub(super) fn unless_gone(result: Result<(), Error>) -> Result<(), Error> {
    let gone = [Errno::INVAL, Errno::NOENT, Errno::NODEV].map(|errno| -errno.raw_os_error());
    match result {
        Err(Error::NetlinkError(e)) if gone.contains(&e.raw_code()) => Ok(()),
        other => other,
    }
}
