//! Devices that come and go while a machine is made, runs, is saved and restored. The guest is
//! three instructions on the software engine; how Linux takes it is for the Python tests.

#[cfg(test)]
mod slots;
