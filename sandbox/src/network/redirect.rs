//! One link's tap, and the redirect between the two.

use std::os::fd::OwnedFd;

use futures_util::TryStreamExt;
use kata_sys::tap;
use rtnetlink::{
    Error, Handle, LinkUnspec,
    packet_route::tc::{TcHandle, TcMessage},
};

use super::{NetworkError, Nic, scan::HostLink};
use crate::step::{Step, Steps};

/// ETH_P_ALL in network byte order, as a filter's protocol is given.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// Handle of the ingress qdisc, `ffff:`.
const INGRESS: u32 = 0xffff_0000;

/// Makes the tap of `link` and redirects every frame of the one to the other.
pub(super) async fn attach(
    handle: &Handle,
    link: &HostLink,
    intend: &impl Fn(&str) -> Result<(), NetworkError>,
    steps: &Steps,
) -> Result<Nic, NetworkError> {
    steps.enter(Step::MakeTap)?;
    let tap = tap::make("kata%d")
        .map_err(|source| NetworkError::Tap { link: link.name.clone(), source })?;
    let tap_index = set_up(handle, &tap.name, link.mtu).await?;
    intend(&link.name)?;
    steps.enter(Step::RedirectLink)?;
    let both = [
        (link.index, &link.name, tap_index, &tap.name),
        (tap_index, &tap.name, link.index, &link.name),
    ];
    for (from, from_name, to, to_name) in both {
        redirect(handle, from, to).await.map_err(|source| NetworkError::Redirect {
            from: from_name.clone(),
            to: to_name.clone(),
            source,
        })?;
    }
    let tap: OwnedFd = tap.fd;
    Ok(Nic { tap, mac: link.mac, mtu: link.mtu })
}

/// Removes the ingress qdisc of a link; a link or qdisc that is gone is no error.
pub(super) async fn remove(handle: &Handle, link: &str) -> Result<(), NetworkError> {
    let Ok(Some(message)) =
        handle.link().get().match_name(link.to_owned()).execute().try_next().await
    else {
        return Ok(());
    };
    let mut ingress = TcMessage::with_index(message.header.index.cast_signed());
    ingress.header.parent = TcHandle::INGRESS;
    ingress.header.handle = TcHandle::from(INGRESS);
    let mut request = handle.qdisc().del(message.header.index.cast_signed());
    *request.message_mut() = ingress;
    match request.execute().await {
        Err(Error::NetlinkError(e))
            if e.raw_code() == -rustix::io::Errno::INVAL.raw_os_error()
                || e.raw_code() == -rustix::io::Errno::NOENT.raw_os_error() =>
        {
            Ok(())
        }
        other => other.map_err(|source| NetworkError::Restore { link: link.to_owned(), source }),
    }
}

async fn set_up(handle: &Handle, name: &str, mtu: u32) -> Result<u32, NetworkError> {
    let failed = |source| NetworkError::SetTap { tap: name.to_owned(), source };
    let mut found = handle.link().get().match_name(name.to_owned()).execute();
    let message =
        found.try_next().await.map_err(failed)?.ok_or(Error::RequestFailed).map_err(failed)?;
    let index = message.header.index;
    let change = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
    handle.link().set(change).execute().await.map_err(failed)?;
    Ok(index)
}

async fn redirect(handle: &Handle, from: u32, to: u32) -> Result<(), Error> {
    let from = from.cast_signed();
    handle.qdisc().replace(from).ingress().execute().await?;
    handle
        .traffic_filter(from)
        .add()
        .parent(INGRESS)
        .protocol(ALL_PROTOCOLS)
        .redirect(to)?
        .execute()
        .await
}
