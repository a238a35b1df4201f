//! Plain f64 loops, the oracle of the tests.
