/* Native versions of four functions that every small request or record runs through.

   Each does exactly what its reference in Python does, which docs and tests take as the rule
   (`dolmen.native` tells how one is chosen); the same property tests run over both. Nothing
   here is kept between calls but constants, and no index into a buffer is used before it was
   compared with the buffer's length. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

/* ---- CRC-32 of zlib (RFC 1952, section 8), for the partition of a name ---- */

static uint32_t crc_table[256];

static void make_crc_table(void) {
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
        crc_table[n] = c;
    }
}

static uint32_t zlib_crc32(const uint8_t *data, Py_ssize_t size) {
    uint32_t crc = 0xFFFFFFFFu;
    for (Py_ssize_t i = 0; i < size; i++)
        crc = crc_table[(crc ^ data[i]) & 0xFF] ^ (crc >> 8);
    return ~crc;
}

/* ---- CRC-32C (RFC 3720, appendix B.4), by the processor's own instruction ---- */

#if defined(__x86_64__)
#include <nmmintrin.h>
static int have_crc32c(void) { return __builtin_cpu_supports("sse4.2"); }
#define STEP_8(crc, word) _mm_crc32_u64(crc, word)
#define STEP_1(crc, byte) _mm_crc32_u8((uint32_t)(crc), byte)
#define CRC_TARGET __attribute__((target("sse4.2")))
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_acle.h>
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
static int have_crc32c(void) { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
#define STEP_8(crc, word) __crc32cd((uint32_t)(crc), word)
#define STEP_1(crc, byte) __crc32cb((uint32_t)(crc), byte)
#define CRC_TARGET __attribute__((target("+crc")))
#else
static int have_crc32c(void) { return 0; }
#define STEP_8(crc, word) ((void)(word), (crc))
#define STEP_1(crc, byte) ((void)(byte), (crc))
#define CRC_TARGET
#endif

/* The instruction gives a result three cycles after it was begun, but another can be begun every
   cycle: three lanes are taken side by side, and joined by what LANE zero bytes make of a CRC
   (Gopal et al., "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction", 2011). */

#define LANE 1360
static uint32_t past_lane[4][256];

CRC_TARGET static void make_lane_table(void) {
    uint32_t bits[32];
    for (int bit = 0; bit < 32; bit++) {
        uint64_t crc = 1u << bit;
        for (int i = 0; i < LANE / 8; i++)
            crc = STEP_8(crc, 0);
        bits[bit] = (uint32_t)crc;
    }
    for (int byte = 0; byte < 4; byte++)
        for (int value = 0; value < 256; value++) {
            past_lane[byte][value] = 0;
            for (int bit = 0; bit < 8; bit++)
                if (value >> bit & 1)
                    past_lane[byte][value] ^= bits[8 * byte + bit];
        }
}

static uint64_t skip_lane(uint64_t crc) {
    return past_lane[0][crc & 0xFF] ^ past_lane[1][crc >> 8 & 0xFF] ^
           past_lane[2][crc >> 16 & 0xFF] ^ past_lane[3][crc >> 24 & 0xFF];
}

static uint64_t word_at(const uint8_t *data) {
    uint64_t word;
    memcpy(&word, data, 8);
    return word;
}

/* The CRC of what came `before` and this. */
CRC_TARGET static uint32_t crc32c(const uint8_t *data, size_t size, uint32_t before) {
    uint64_t crc = ~before;
    for (; size >= 3 * LANE; data += 3 * LANE, size -= 3 * LANE) {
        uint64_t second = 0, third = 0;
        for (size_t i = 0; i < LANE; i += 8) {
            crc = STEP_8(crc, word_at(data + i));
            second = STEP_8(second, word_at(data + LANE + i));
            third = STEP_8(third, word_at(data + 2 * LANE + i));
        }
        crc = skip_lane(skip_lane(crc) ^ second) ^ third;
    }
    for (; size >= 8; data += 8, size -= 8)
        crc = STEP_8(crc, word_at(data));
    for (; size > 0; data++, size--)
        crc = STEP_1(crc, *data);
    return ~(uint32_t)crc;
}

/* ---- recognize(data, block): see dolmen.http.head ---- */

static const char *const METHODS[] = {"GET", "HEAD", "PUT", "POST", "DELETE"};
#define METHOD_COUNT 5
static PyObject *method_names[METHOD_COUNT];
static const char VERSION[] = " HTTP/1.1";
#define VERSION_SIZE ((Py_ssize_t)sizeof VERSION - 1)

static PyObject *recognize(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    char *data, *block;
    Py_ssize_t size, block_size;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "recognize() takes data and block");
        return NULL;
    }
    if (PyBytes_AsStringAndSize(args[0], &data, &size) < 0 ||
        PyBytes_AsStringAndSize(args[1], &block, &block_size) < 0)
        return NULL;
    for (int i = 0; i < METHOD_COUNT; i++) {
        Py_ssize_t length = (Py_ssize_t)strlen(METHODS[i]);
        if (size <= length + 1 || data[length] != ' ' || memcmp(data, METHODS[i], (size_t)length) != 0)
            continue;
        const char *target = data + length + 1, *end = data + size, *at = target;
        if (*at != '/')
            Py_RETURN_NONE;
        for (at++; at < end && (*at == '!' || *at == '"' || ('$' <= *at && *at <= '~')); at++)
            ;
        if (end - at < VERSION_SIZE || memcmp(at, VERSION, VERSION_SIZE) != 0)
            Py_RETURN_NONE;
        const char *rest = at + VERSION_SIZE;
        /* A block begins with the CRLF that ends the first line. */
        if (block_size < 2 || block[0] != '\r' || block[1] != '\n' || end - rest < block_size ||
            memcmp(rest, block, (size_t)block_size) != 0)
            Py_RETURN_NONE;
        PyObject *found = PyTuple_New(3);
        PyObject *path = PyBytes_FromStringAndSize(target, at - target);
        PyObject *stop = PyLong_FromSsize_t(rest - data + block_size);
        if (found == NULL || path == NULL || stop == NULL) {
            Py_XDECREF(found);
            Py_XDECREF(path);
            Py_XDECREF(stop);
            return NULL;
        }
        PyTuple_SetItem(found, 0, Py_NewRef(method_names[i])); /* these steal */
        PyTuple_SetItem(found, 1, path);
        PyTuple_SetItem(found, 2, stop);
        return found;
    }
    Py_RETURN_NONE;
}

/* ---- key_of(name): see dolmen.stores.volume.entry ---- */

#define BEFORE_NAME 3 /* "e" and the partition */

static int digit_of(char c) {
    return '0' <= c && c <= '9' ? c - '0' : 'a' <= c && c <= 'f' ? c - 'a' + 10 : -1;
}

static PyObject *key_of(PyObject *self, PyObject *name) {
    (void)self;
    Py_ssize_t size;
    if (!PyUnicode_Check(name)) {
        PyErr_SetString(PyExc_TypeError, "a name is text");
        return NULL;
    }
    const char *text = PyUnicode_AsUTF8AndSize(name, &size);
    if (text == NULL)
        return NULL;
    uint32_t partition = zlib_crc32((const uint8_t *)text, size) >> 16;
    char packed[BEFORE_NAME + 1 + 32] = {'e', (char)(partition >> 8), (char)partition};
    const char *digits = text;
    Py_ssize_t many = size;
    int form = size == 64 ? 0 : size == 40 ? 1 : -1;
    if (size == 69 && memcmp(text, "chunk", 5) == 0) {
        form = 2;
        digits = text + 5;
        many = 64;
    }
    if (form >= 0) {
        packed[BEFORE_NAME] = (char)form;
        Py_ssize_t i;
        for (i = 0; i < many; i += 2) {
            int high = digit_of(digits[i]), low = digit_of(digits[i + 1]);
            if (high < 0 || low < 0)
                break;
            packed[BEFORE_NAME + 1 + i / 2] = (char)(high << 4 | low);
        }
        if (i == many)
            return PyBytes_FromStringAndSize(packed, BEFORE_NAME + 1 + many / 2);
    }
    PyObject *key = PyBytes_FromStringAndSize(NULL, BEFORE_NAME + size);
    if (key == NULL)
        return NULL;
    char *to = PyBytes_AsString(key);
    memcpy(to, packed, BEFORE_NAME);
    memcpy(to + BEFORE_NAME, text, (size_t)size);
    return key;
}

/* ---- read_record(fd, offset, name, inner, length, checksum): see dolmen.stores.volume.disk ---- */

#define HEADER_SIZE 76
#define CHECKSUM_AT 36
#define CHECKSUM_SIZE 16
#define BEFORE_MAX (HEADER_SIZE + 128 + 16384) /* a header, the longest name and metadata */
#define BLOCK 65536
#define LENGTH_MAX (4 * BLOCK)

static uint64_t little(const uint8_t *at, int bytes) {
    uint64_t number = 0;
    while (bytes-- > 0)
        number = number << 8 | at[bytes];
    return number;
}

static int blocks_match(const uint8_t *data, size_t size, const uint8_t *sums) {
    for (size_t done = 0; done < size; done += BLOCK, sums += 4) {
        size_t left = size - done;
        if (crc32c(data + done, left < BLOCK ? left : BLOCK, 0) != little(sums, 4))
            return 0;
    }
    return 1;
}

static PyObject *read_record(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    char *name, *checksum;
    Py_ssize_t name_size, checksum_size;
    if (count != 6) {
        PyErr_SetString(PyExc_TypeError,
                        "read_record() takes fd, offset, name, inner, length and checksum");
        return NULL;
    }
    long long fd = PyLong_AsLongLong(args[0]), offset = PyLong_AsLongLong(args[1]);
    long long inner = PyLong_AsLongLong(args[3]), length = PyLong_AsLongLong(args[4]);
    if (PyErr_Occurred() || PyBytes_AsStringAndSize(args[2], &name, &name_size) < 0 ||
        PyBytes_AsStringAndSize(args[5], &checksum, &checksum_size) < 0)
        return NULL;
    if (fd < 0 || fd > INT32_MAX || offset < 0 || length < 0 || length > LENGTH_MAX || inner < 0 ||
        inner > BEFORE_MAX || name_size > BEFORE_MAX ||
        HEADER_SIZE + name_size + inner > BEFORE_MAX || checksum_size != CHECKSUM_SIZE)
        Py_RETURN_NONE;
    uint8_t before[BEFORE_MAX], sums[4 * (LENGTH_MAX / BLOCK)];
    size_t size = (size_t)length, blocks = (size + BLOCK - 1) / BLOCK;
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (data == NULL)
        return NULL;
    const uint8_t *bytes = (const uint8_t *)PyBytes_AsString(data);
    struct iovec parts[] = {
        {before, (size_t)(HEADER_SIZE + name_size + inner)},
        {(void *)bytes, size},
        {sums, 4 * blocks},
    };
    ssize_t got = preadv2((int)fd, parts, 3, (off_t)offset, RWF_NOWAIT); /* never waits */
    if (got < 0 && errno != EAGAIN && errno != EOPNOTSUPP && errno != ENOSYS) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(data);
        return NULL;
    }
    if (got < 0 || (size_t)got != parts[0].iov_len + size + 4 * blocks) {
        Py_DECREF(data);
        Py_RETURN_NONE;
    }
    if (memcmp(before + CHECKSUM_AT, checksum, CHECKSUM_SIZE) != 0 ||
        memcmp(before + HEADER_SIZE, name, (size_t)name_size) != 0 ||
        !blocks_match(bytes, size, sums)) {
        Py_DECREF(data);
        Py_RETURN_FALSE;
    }
    return data;
}

/* ---- sound_records(buffer, at, owner, data): see dolmen.stores.records ---- */

#define OWNER_AT 52
#define CRC_AT 72
#define WHOLE (64 * BLOCK)

static int is_name(const uint8_t *name, size_t size) {
    for (size_t i = 0; i < size; i++) {
        uint8_t c = name[i];
        int plain = ('0' <= c && c <= '9') || ('A' <= c && c <= 'Z') || ('a' <= c && c <= 'z');
        if (!plain && (i == 0 || (c != '.' && c != '_' && c != '-')))
            return 0;
    }
    return 0 < size && size <= 128;
}

static int is_metadata(const uint8_t *at, size_t left) {
    const uint8_t *last = at;
    size_t last_size = 0;
    if (left > 16384)
        return 0;
    while (left > 0) {
        size_t size = at[0];
        if (left < 3 || left < 3 + size + little(at + 1, 2))
            return 0;
        const uint8_t *name = at + 3;
        int order = memcmp(name, last, size < last_size ? size : last_size);
        if (order < 0 || (order == 0 && size <= last_size))
            return 0;
        for (size_t i = 0; i < size; i++)
            if ('A' <= name[i] && name[i] <= 'Z')
                return 0;
        last = name;
        last_size = size;
        left -= 3 + size + little(at + 1, 2);
        at = name + size + little(at + 1, 2);
    }
    return 1;
}

static PyObject *sound_records(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    char *buffer, *owner;
    Py_ssize_t size, owner_size;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "sound_records() takes buffer, at, owner and data");
        return NULL;
    }
    if (PyBytes_AsStringAndSize(args[0], &buffer, &size) < 0 ||
        PyBytes_AsStringAndSize(args[2], &owner, &owner_size) < 0)
        return NULL;
    Py_ssize_t at = PyLong_AsSsize_t(args[1]);
    int with_data = PyObject_IsTrue(args[3]);
    if (PyErr_Occurred())
        return NULL;
    PyObject *found = PyList_New(0);
    while (found != NULL && owner_size == 16 && 0 <= at && at <= size - HEADER_SIZE) {
        const uint8_t *head = (const uint8_t *)buffer + at, *name = head + HEADER_SIZE;
        size_t left = (size_t)(size - at), named = head[6], inner = little(head + 8, 2);
        const uint8_t *metadata = name + named, *data = metadata + inner;
        size_t start = HEADER_SIZE + named + inner;
        uint64_t length = little(head + 12, 8);
        if (memcmp(head, "dlmn\1", 5) != 0 || head[5] < 1 || head[5] > 4 || left < start ||
            memcmp(head + OWNER_AT, owner, 16) != 0 || (with_data && length > WHOLE))
            break;
        size_t held = with_data ? length : 0, sums = 4 * ((held + BLOCK - 1) / BLOCK);
        if (left < start + held + sums || !is_name(name, named) || !is_metadata(metadata, inner) ||
            crc32c(name, named + inner, crc32c(head, CRC_AT, 0)) != little(head + CRC_AT, 4) ||
            !blocks_match(data, held, data + held))
            break;
        at += (Py_ssize_t)(start + held + sums);
        PyObject *record = Py_BuildValue(
            "((s#KiKy#y#K)y#y#n)", name, (Py_ssize_t)named, (unsigned long long)length,
            (int)head[5], (unsigned long long)little(head + 20, 8), head + CHECKSUM_AT,
            (Py_ssize_t)CHECKSUM_SIZE, metadata, (Py_ssize_t)inner,
            (unsigned long long)little(head + 28, 8), data, (Py_ssize_t)held, data + held,
            (Py_ssize_t)sums, at);
        if (record == NULL || PyList_Append(found, record) < 0)
            Py_CLEAR(found);
        Py_XDECREF(record);
    }
    return found;
}

/* ---- The module ---- */

static PyMethodDef functions[] = {
    {"recognize", (PyCFunction)(void (*)(void))recognize, METH_FASTCALL, NULL},
    {"key_of", key_of, METH_O, NULL},
    {"read_record", (PyCFunction)(void (*)(void))read_record, METH_FASTCALL, NULL},
    {"sound_records", (PyCFunction)(void (*)(void))sound_records, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "dolmen._native", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__native(void) {
    make_crc_table();
    for (int i = 0; i < METHOD_COUNT; i++)
        if ((method_names[i] = PyUnicode_InternFromString(METHODS[i])) == NULL)
            return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && have_crc32c()) {
        make_lane_table();
    } else if (module != NULL && (PyObject_DelAttrString(module, "read_record") < 0 ||
                                  PyObject_DelAttrString(module, "sound_records") < 0)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
