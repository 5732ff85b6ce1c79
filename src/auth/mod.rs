//! Keys and what they prove: message authentication of LISP, and what has been seen before.
//! Pure functions and small tables.
