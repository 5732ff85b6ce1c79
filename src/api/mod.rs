//! Requests into the node and views of its state out of it. Adapters, never a source of truth.
//!
//! HTTP/JSON over the Unix socket `api.sock`; every answer is `{"version":1,"kind":…,"data":…}` or
//! `{"version":1,"error":{"code":…,"message":…}}`:
//!
//! | resource | | answer |
//! |---|---|---|
//! | `GET /v1/status` `/v1/health` | | [`views::StatusView`], [`views::HealthView`] |
//! | `GET /v1/bgp/neighbors` | | list of [`views::NeighborView`] |
//! | `GET /v1/bfd/sessions` | | list of [`views::BfdSessionView`] |
//! | `GET /v1/bgp/routes` | `family` `within` `neighbor` `cursor` `limit` | page of [`views::RouteView`] |
//! | `GET /v1/bgp/route` | `prefix` | [`views::RouteDetailView`] |
//! | `GET /v1/mobility/sessions` | `cursor` `limit` | page of [`views::SessionView`] |
//! | `GET /v1/mobility/paths` | `cursor` `limit` | page of [`views::PathView`] |
//! | `GET /v1/mobility/session` | `mn` or `prefix` | list of [`views::SessionView`] |
//! | `POST /v1/mobility/attach` | body [`Attach`] | [`views::AcceptedView`] |
//! | `POST /v1/mobility/detach` | `mn` or `prefix` | [`views::AcceptedView`] |
//! | `POST /v1/mobility/move` | body [`Move`] | [`views::AcceptedView`] |
//! | `GET /v1/ctx/transfers` | | list of [`views::TransferView`] |
//! | `GET /v1/ctx/context` | `mn` | [`views::ContextView`] |
//! | `PUT /v1/ctx/context` | body [`views::ContextView`] | [`views::AcceptedView`] |
//! | `GET /v1/fib/routes` | `cursor` `limit` | page of [`views::FibRouteView`] |
//! | `GET /v1/fib/diff` | | [`views::FibDiffView`] |
//! | `GET /v1/trace` | `mn` | list of [`views::TraceView`], newest first |
//! | `GET /v1/lisp/map-cache` | `cursor` `limit` | page of [`lisp_views::MapCacheView`] |
//! | `GET /v1/lisp/registrations` | `cursor` `limit` | page of [`lisp_views::RegistrationView`] |
//! | `GET /v1/lisp/subscriptions` | | list of [`lisp_views::SubscriptionView`] |
//! | `GET /v1/lisp/probes` | | list of [`lisp_views::ProbeView`] |
//! | `GET /v1/lisp/lookup` | `prefix` (a host) | [`lisp_views::LookupView`] |
//! | `GET /v1/explain/route` | `prefix` | [`lisp_views::ExplainView`] |
//! | `GET /v1/events` | | lines of [`views::EventView`] without end |
//! | `GET /metrics` | | Prometheus text |
//!
//! Operations by the hundred thousand go over `stream.sock`: [`stream`].

pub mod client;
pub mod events;
pub mod lisp_views;
pub mod request;
mod server;
pub mod socket;
pub mod stream;
pub mod views;

pub use events::Events;
pub use request::{
    Answer, ApiError, Attach, Call, Caller, ErrorCode, Move, Paging, Reply, Request, RouteFilter,
    Target, channel,
};
pub use server::{Server, start};

#[cfg(test)]
pub(crate) mod tests;
