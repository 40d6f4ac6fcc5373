//! Which numbers a GPU computes.

use tl_engine::{
    gpu::{self, Device},
    num,
};

use crate::device;

#[test]
fn it_is_the_same_however_often_a_gpu_is_opened_and_another_than_the_hosts() {
    let Some(device) = device() else { return };
    let found = gpu::fingerprint(device).unwrap();
    assert_eq!(gpu::fingerprint(&Device::open(0).unwrap()).unwrap(), found);
    assert_ne!(found, num::fingerprint::fingerprint());
}
