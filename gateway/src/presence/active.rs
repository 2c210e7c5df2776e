//! Which sessions are active: those of which some visitor is connected, to this gateway or another.
//!
//! This is the state; [`crate::presence::peers`] exchanges it with the other gateways.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shared::ids::SessionId;
use shared::presence::{Delta, GatewayId};
use tokio::sync::Notify;

use crate::presence::list_revision::ListRevision;

/// The active sessions of all gateways.
#[derive(Default)]
pub struct Presence {
    state: Mutex<State>,
    /// Something changed that the other gateways do not know yet.
    unsaid: Notify,
    /// Something changed that lists show.
    lists: Arc<ListRevision>,
}

#[derive(Default)]
struct State {
    active: HashMap<SessionId, Active>,
    peers: HashMap<GatewayId, HashSet<SessionId>>,
    /// Sessions that came or left here since the last time.
    unsaid: HashSet<SessionId>,
    /// Counts what happens, to tell what happened last.
    clock: u64,
}

#[derive(Default)]
struct Active {
    here: u32,
    /// Other gateways with visitors.
    elsewhere: u32,
    /// When something happened in it.
    last: u64,
}

impl Presence {
    /// Nobody is connected yet; who is, these lists show.
    pub fn new(lists: Arc<ListRevision>) -> Self {
        Self { lists, ..Self::default() }
    }

    /// A visitor's socket is here.
    pub fn came(&self, session: SessionId) {
        let mut state = self.lock();
        let active = state.happened(session);
        active.here += 1;
        if active.here == 1 {
            state.unsaid.insert(session);
            self.unsaid.notify_one();
        }
        drop(state);
        self.lists.touched(session);
    }

    /// A visitor's socket is gone.
    pub fn left(&self, session: SessionId) {
        let mut state = self.lock();
        let Some(active) = state.active.get_mut(&session) else { return };
        active.here = active.here.saturating_sub(1);
        if active.here == 0 {
            state.forget_if_idle(session);
            state.unsaid.insert(session);
            self.unsaid.notify_one();
        }
        drop(state);
        self.lists.touched(session);
    }

    /// Something was said in a session.
    pub fn said(&self, session: SessionId) {
        let mut state = self.lock();
        if state.active.contains_key(&session) {
            state.happened(session);
        }
    }

    /// Whether some visitor is connected.
    pub fn is_active(&self, session: SessionId) -> bool {
        self.lock().active.contains_key(&session)
    }

    /// At most so many active sessions; those come first in which something happened last.
    pub fn recent(&self, max: usize) -> Vec<SessionId> {
        let mut recent: Vec<_> =
            self.lock().active.iter().map(|(session, active)| (active.last, *session)).collect();
        if recent.len() > max {
            recent.select_nth_unstable_by(max, |one, other| other.cmp(one));
            recent.truncate(max);
        }
        recent.sort_unstable_by(|one, other| other.cmp(one));
        recent.into_iter().map(|(_, session)| session).collect()
    }

    /// Resolves when the other gateways have something to be told.
    pub async fn unsaid(&self) {
        self.unsaid.notified().await;
    }

    /// What the other gateways do not know yet: who came, and who left.
    pub fn take_unsaid(&self) -> (Vec<SessionId>, Vec<SessionId>) {
        let mut state = self.lock();
        let unsaid = std::mem::take(&mut state.unsaid);
        unsaid.into_iter().partition(|session| state.is_here(*session))
    }

    /// All sessions with visitors here.
    pub fn here(&self) -> Vec<SessionId> {
        let state = self.lock();
        state.active.iter().filter(|(_, active)| active.here > 0).map(|(id, _)| *id).collect()
    }

    /// Another gateway's set changed.
    pub fn peer_changed(&self, peer: GatewayId, Delta { came, left, .. }: &Delta) {
        let mut state = self.lock();
        for session in left {
            state.peer_left(peer, *session);
        }
        for session in came {
            state.peer_came(peer, *session);
        }
        drop(state);
        came.iter().chain(left).for_each(|session| self.lists.touched(*session));
    }

    /// Another gateway's whole set.
    pub fn peer_is(&self, peer: GatewayId, sessions: &HashSet<SessionId>) {
        let mut state = self.lock();
        let known = state.peers.get(&peer).cloned().unwrap_or_default();
        for session in known.difference(sessions) {
            state.peer_left(peer, *session);
        }
        for session in sessions.difference(&known) {
            state.peer_came(peer, *session);
        }
        drop(state);
        known.symmetric_difference(sessions).for_each(|session| self.lists.touched(*session));
    }

    /// Another gateway is gone.
    pub fn peer_gone(&self, peer: GatewayId) {
        self.peer_is(peer, &HashSet::new());
        self.lock().peers.remove(&peer);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn happened(&mut self, session: SessionId) -> &mut Active {
        self.clock += 1;
        let active = self.active.entry(session).or_default();
        active.last = self.clock;
        active
    }

    fn is_here(&self, session: SessionId) -> bool {
        self.active.get(&session).is_some_and(|active| active.here > 0)
    }

    fn peer_came(&mut self, peer: GatewayId, session: SessionId) {
        if self.peers.entry(peer).or_default().insert(session) {
            self.happened(session).elsewhere += 1;
        }
    }

    fn peer_left(&mut self, peer: GatewayId, session: SessionId) {
        let was = self.peers.get_mut(&peer).is_some_and(|sessions| sessions.remove(&session));
        if let (true, Some(active)) = (was, self.active.get_mut(&session)) {
            active.elsewhere = active.elsewhere.saturating_sub(1);
            self.forget_if_idle(session);
        }
    }

    fn forget_if_idle(&mut self, session: SessionId) {
        if self.active.get(&session).is_some_and(|active| active.here + active.elsewhere == 0) {
            self.active.remove(&session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(came: &[SessionId], left: &[SessionId]) -> Delta {
        Delta { since: 0, revision: 1, came: came.into(), left: left.into() }
    }

    #[test]
    fn a_session_is_active_until_its_last_visitor_leaves_wherever_that_is() {
        let (presence, session, peer) =
            (Presence::default(), SessionId::random(), GatewayId::random());
        presence.came(session);
        presence.came(session);
        presence.peer_changed(peer, &changed(&[session], &[]));
        presence.left(session);
        presence.left(session);
        assert!(presence.is_active(session), "the other gateway has a visitor");
        presence.peer_changed(peer, &changed(&[], &[session]));
        assert!(!presence.is_active(session));
        presence.left(session);
        assert_eq!(presence.recent(9), []);
    }

    #[test]
    fn a_gateway_that_is_gone_takes_its_visitors_with_it() {
        let [one, both] = [SessionId::random(), SessionId::random()];
        let [first, second] = [GatewayId::random(), GatewayId::random()];
        let presence = Presence::default();
        presence.peer_is(first, &HashSet::from([one, both]));
        presence.peer_is(second, &HashSet::from([both]));
        // Hearing the same twice changes nothing.
        presence.peer_changed(first, &changed(&[one], &[]));
        presence.peer_gone(first);
        assert_eq!(presence.recent(9), [both]);
        presence.peer_is(second, &HashSet::from([one]));
        assert_eq!(presence.recent(9), [one]);
    }

    #[test]
    fn only_what_changed_is_said_and_only_once() {
        let [stays, goes] = [SessionId::random(), SessionId::random()];
        let presence = Presence::default();
        presence.came(stays);
        presence.came(goes);
        presence.left(goes);
        assert_eq!(presence.take_unsaid(), (vec![stays], vec![goes]));
        presence.came(stays);
        assert_eq!(presence.take_unsaid(), (vec![], vec![]));
        assert_eq!(presence.here(), [stays]);
    }

    #[test]
    fn those_come_first_in_which_something_happened_last() {
        let presence = Presence::default();
        let sessions: Vec<_> = (0..9).map(|_| SessionId::random()).collect();
        for session in &sessions {
            presence.came(*session);
        }
        presence.said(sessions[4]);
        presence.said(SessionId::random());
        assert_eq!(presence.recent(3), [sessions[4], sessions[8], sessions[7]]);
    }
}
