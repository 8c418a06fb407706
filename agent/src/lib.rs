//! The program that runs on a location: starts workers and relays their messages.
