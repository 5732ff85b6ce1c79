//! Octets of one connection → messages, without copying those that arrive whole.

use crate::wire::bgp::{Frame, HEADER_LEN, MAX_LEN, Notification, next_frame};

/// What a connection has delivered but not yet completed: less than one message.
#[derive(Debug)]
pub struct Inbox {
    tail: Vec<u8>,
    /// Octets of the largest message: more once RFC 8654 is negotiated.
    pub max_len: usize,
}

impl Inbox {
    pub const fn new() -> Self {
        Self { tail: Vec::new(), max_len: MAX_LEN }
    }

    /// Moves just enough of `input` behind what is held for one message to be complete, and
    /// returns it with what is left of the input. `None`: still incomplete, all input was taken.
    ///
    /// The caller gives back the buffer by [`Self::recycle`], so that it is not allocated anew.
    pub fn complete<'i>(&mut self, input: &'i [u8]) -> Option<(Vec<u8>, &'i [u8])> {
        let after_header = take(&mut self.tail, input, HEADER_LEN);
        let announced = match self.tail.get(16..18) {
            Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
            Some(_) | None => return None,
        };
        // A length beyond the limit is an error that `next` raises from the header alone.
        let rest = take(&mut self.tail, after_header, announced.min(self.max_len));
        if self.tail.len() < HEADER_LEN {
            return None;
        }
        match next_frame(&self.tail, self.max_len) {
            Ok(None) => None,
            Ok(Some(_)) | Err(_) => Some((std::mem::take(&mut self.tail), rest)),
        }
    }

    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        // A buffer that once held a long message is not kept by a connection that is idle.
        if buffer.capacity() <= MAX_LEN {
            buffer.clear();
            self.tail = buffer;
        }
    }

    pub const fn is_empty(&self) -> bool {
        self.tail.is_empty()
    }

    /// Keeps the beginning of a message.
    pub fn keep(&mut self, partial: &[u8]) {
        self.tail.extend_from_slice(partial);
    }

    pub fn next<'b>(&self, input: &'b [u8]) -> Result<Option<Frame<'b>>, Notification> {
        next_frame(input, self.max_len)
    }
}

/// Fills `tail` up to `len` octets from `input`; returns the rest of it.
fn take<'i>(tail: &mut Vec<u8>, input: &'i [u8], len: usize) -> &'i [u8] {
    let missing = len.saturating_sub(tail.len());
    let (head, rest) = input.split_at(missing.min(input.len()));
    tail.extend_from_slice(head);
    rest
}
