//! The driver: which version, and which GPUs. Makes no context, so it takes no memory of a GPU.

use std::{
    ffi::{CStr, c_char, c_int, c_uint},
    fmt,
    path::PathBuf,
};

use crate::{Library, Missing, NoSymbol, Opened};

/// The oldest driver that is used: the first one of CUDA 12.
pub const OLDEST: CudaVersion = CudaVersion { major: 12, minor: 0 };

/// The newest CUDA that a driver knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion {
    /// 12 in 12.4.
    pub major: u32,
    /// 4 in 12.4.
    pub minor: u32,
}

impl CudaVersion {
    /// From NVIDIA's number: 12040 is 12.4.
    fn from_number(number: c_int) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        Self { major: number / 1000, minor: number % 1000 / 10 }
    }

    /// What a driver knows; nothing if it does not tell.
    #[expect(unsafe_code, reason = "calls the driver")]
    pub(crate) fn newest(driver: &Opened) -> Option<Self> {
        let mut number = 0;
        // SAFETY: the type is that of the documentation; it writes one number, and needs no GPU.
        let answer = unsafe { driver.function::<Number>("cuDriverGetVersion").ok()?(&mut number) };
        (answer == 0).then(|| Self::from_number(number))
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A driver that is there, and its GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// The file that was opened.
    pub path: PathBuf,
    /// Of the kernel's module, such as 580.65.06; empty where the system does not tell.
    pub module: String,
    /// The newest CUDA that it knows.
    pub cuda: CudaVersion,
    /// By number; empty where the driver has nothing to drive.
    pub gpus: Vec<Gpu>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, as `CUDA_VISIBLE_DEVICES` leaves it.
    pub index: u32,
    /// Its model.
    pub name: String,
    /// `GPU-…`, the same in every process; empty where the driver does not tell.
    pub uuid: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Compute capability: (9, 0) is Hopper.
    pub compute: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
}

/// Why the GPUs of a machine are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// There is no driver.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// It is one of another age.
    #[error(transparent)]
    NoSymbol(#[from] NoSymbol),
    /// It is older than CUDA 12.
    #[error("the NVIDIA driver `{}` knows CUDA {found} at most, and {OLDEST} is needed: install a newer one", path.display())]
    TooOld {
        /// The file.
        path: PathBuf,
        /// What it knows.
        found: CudaVersion,
    },
    /// It is there and refuses.
    #[error("the NVIDIA driver `{}` answers {function} with {code} ({name})", path.display())]
    Call {
        /// The file.
        path: PathBuf,
        /// What it was asked.
        function: &'static str,
        /// Its answer.
        code: c_int,
        /// The name of that.
        name: String,
    },
}

/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_int = 100;
/// `CU_DEVICE_ATTRIBUTE_…`: multiprocessors, compute capability.
const MULTIPROCESSORS: c_int = 16;
const COMPUTE_MAJOR: c_int = 75;
const COMPUTE_MINOR: c_int = 76;

type Number = unsafe extern "C" fn(*mut c_int) -> c_int;

/// The few functions that this needs.
struct Api {
    path: PathBuf,
    init: unsafe extern "C" fn(c_uint) -> c_int,
    version: Number,
    count: Number,
    device: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
    name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int,
    memory: unsafe extern "C" fn(*mut usize, c_int) -> c_int,
    attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
    uuid: Option<unsafe extern "C" fn(*mut [u8; 16], c_int) -> c_int>,
    error_name: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
}

/// Asks the driver of this machine.
///
/// # Errors
/// There is none, it is too old, or it refuses.
pub fn probe() -> Result<Driver, ProbeError> {
    let api = Api::open()?;
    let number = api.ask("cuDriverGetVersion", api.version)?;
    let cuda = CudaVersion::from_number(number);
    if cuda < OLDEST {
        return Err(ProbeError::TooOld { path: api.path, found: cuda });
    }
    let count = match api.init() {
        NO_DEVICE => 0,
        code => api.check("cuInit", code).and_then(|()| api.ask("cuDeviceGetCount", api.count))?,
    };
    let gpus = (0..u32::try_from(count).unwrap_or(0)).map(|index| api.gpu(index)).collect::<Result<_, _>>()?;
    let module = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    Ok(Driver { path: api.path, module: module_version(&module), cuda, gpus })
}

/// The version in what the kernel's module says of itself: the first word like 580.65.06.
fn module_version(text: &str) -> String {
    let is_version = |w: &&str| w.contains('.') && w.split('.').all(|p| p.parse::<u32>().is_ok());
    text.lines().next().unwrap_or_default().split_whitespace().find(is_version).unwrap_or_default().to_owned()
}

impl Api {
    #[expect(unsafe_code, reason = "functions of the driver")]
    fn open() -> Result<Self, ProbeError> {
        let library = Library::Driver.open()?;
        // SAFETY: the types are those of the driver API's documentation; `CUdevice`, `CUresult` and the attributes are C
        // ints, a `CUuuid` is sixteen bytes.
        unsafe {
            Ok(Self {
                path: library.path().to_owned(),
                init: library.function("cuInit")?,
                version: library.function("cuDriverGetVersion")?,
                count: library.function("cuDeviceGetCount")?,
                device: library.function("cuDeviceGet")?,
                name: library.function("cuDeviceGetName")?,
                memory: library.function("cuDeviceTotalMem_v2")?,
                attribute: library.function("cuDeviceGetAttribute")?,
                uuid: library.function("cuDeviceGetUuid_v2").or_else(|_| library.function("cuDeviceGetUuid")).ok(),
                error_name: library.function("cuGetErrorName")?,
            })
        }
    }

    #[expect(unsafe_code, reason = "calls the driver")]
    fn init(&self) -> c_int {
        // SAFETY: the only flags that there are; may be called again.
        unsafe { (self.init)(0) }
    }

    #[expect(unsafe_code, reason = "calls the driver")]
    fn ask(&self, function: &'static str, call: Number) -> Result<c_int, ProbeError> {
        let mut number = 0;
        // SAFETY: writes one int.
        self.check(function, unsafe { call(&mut number) }).map(|()| number)
    }

    #[expect(unsafe_code, reason = "calls the driver")]
    fn gpu(&self, index: u32) -> Result<Gpu, ProbeError> {
        let (mut device, mut memory, mut name, mut uuid) = (0, 0usize, [0 as c_char; 256], [0u8; 16]);
        // SAFETY: each writes one value of its type; the device is one that the driver has just given, and the last byte of
        // the name is never written: it stays zero.
        unsafe {
            self.check("cuDeviceGet", (self.device)(&mut device, index as c_int))?;
            self.check("cuDeviceGetName", (self.name)(name.as_mut_ptr(), 255, device))?;
            self.check("cuDeviceTotalMem", (self.memory)(&mut memory, device))?;
        }
        // SAFETY: as above.
        let has_uuid = self.uuid.is_some_and(|ask| unsafe { ask(&mut uuid, device) } == 0);
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: writes one int.
            self.check("cuDeviceGetAttribute", unsafe { (self.attribute)(&mut value, which, device) })?;
            Ok::<_, ProbeError>(u32::try_from(value).unwrap_or(0))
        };
        // SAFETY: the array ends with a zero.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        Ok(Gpu {
            index,
            name,
            uuid: if has_uuid { uuid_text(&uuid) } else { String::new() },
            memory: memory as u64,
            compute: (attribute(COMPUTE_MAJOR)?, attribute(COMPUTE_MINOR)?),
            multiprocessors: attribute(MULTIPROCESSORS)?,
        })
    }

    #[expect(unsafe_code, reason = "calls the driver")]
    fn check(&self, function: &'static str, code: c_int) -> Result<(), ProbeError> {
        if code == 0 {
            return Ok(());
        }
        let mut text = std::ptr::null();
        // SAFETY: writes one pointer, to a string of the driver's that lives for ever, or null.
        let known = unsafe { (self.error_name)(code, &mut text) } == 0 && !text.is_null();
        let name = if known {
            // SAFETY: as above.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        } else {
            "an error that it has no name for".into()
        };
        Err(ProbeError::Call { path: self.path.clone(), function, code, name })
    }
}

/// As `nvidia-smi -L` writes it.
fn uuid_text(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_nvidia_writes_them() {
        assert_eq!(CudaVersion::from_number(12040).to_string(), "12.4");
        assert_eq!(CudaVersion::from_number(13000).to_string(), "13.0");
        assert!(CudaVersion::from_number(11080) < OLDEST && CudaVersion::from_number(12000) == OLDEST);
        let open =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)\nGCC";
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023";
        assert_eq!([module_version(open), module_version(closed)], ["580.65.06", "535.104.05"]);
        assert_eq!([module_version(""), module_version("no driver. here")], ["", ""]);
    }

    #[test]
    fn the_driver_is_asked_for_its_gpus() {
        let dir = tempfile::tempdir().unwrap();
        crate::fake::build(dir.path()).unwrap();
        let path = dir.path().join("libcuda.so.1");
        assert_eq!(Library::Driver.open_from(&[dir.path().into()]).unwrap().path(), path);
        let found = probe().unwrap();
        assert_eq!((found.path, found.cuda.to_string()), (path, "13.0".into()));
        let gpu = Gpu {
            index: 0,
            name: crate::fake::GPU.into(),
            uuid: "GPU-00000000-0000-0000-0000-000000000000".into(),
            memory: 80 << 30,
            compute: (9, 0),
            multiprocessors: 132,
        };
        assert_eq!(found.gpus, [gpu]);
    }

    #[test]
    fn a_uuid_reads_as_the_tools_write_it() {
        let bytes = std::array::from_fn(|i| i as u8 * 17);
        assert_eq!(uuid_text(&bytes), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }
}
