// A stand-in for the NVIDIA driver: memory is the host's, and time is what `fake_work` says, so that tests are exact.
// Every call of a function that the tests ask about is counted; the function named by `fake_fail` returns an error.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MOST 64

static double now_ms, captured_ms;
static int capturing, broken_capture, live_buffers, live_graphs;
static const char *failing = "";
static int failing_code;
static struct { char name[40]; int times; } counted[MOST];

static int called(const char *name) {
    for (int i = 0; i < MOST; i++) {
        if (!counted[i].name[0]) snprintf(counted[i].name, sizeof counted[i].name, "%s", name);
        if (!strcmp(counted[i].name, name)) { counted[i].times++; break; }
    }
    return strcmp(name, failing) ? 0 : failing_code;
}
#define CALLED do { int code = called(__func__); if (code) return code; } while (0)

EXPORT int fake_calls(const char *name) {
    for (int i = 0; i < MOST; i++) if (!strcmp(counted[i].name, name)) return counted[i].times;
    return 0;
}
EXPORT void fake_fail(const char *name, int code) { failing = strdup(name); failing_code = code; }
EXPORT void fake_break_capture(void) { broken_capture = 1; }
EXPORT int fake_live_buffers(void) { return live_buffers; }
EXPORT int fake_live_graphs(void) { return live_graphs; }
// Work put on the stream: it happens now, or becomes part of the graph that is captured.
EXPORT void fake_work(double ms) { if (capturing) captured_ms += ms; else now_ms += ms; }
EXPORT void fake_idle(double ms) { now_ms += ms; }

EXPORT int cuInit(unsigned flags) { CALLED; return 0; }
EXPORT int cuGetErrorString(int code, const char **text) { *text = code == 2 ? "out of memory" : "fake error"; return 0; }
EXPORT int cuDriverGetVersion(int *version) { *version = 12040; return 0; }
EXPORT int cuDeviceGetCount(int *count) { CALLED; *count = getenv("FAKE_NO_GPU") ? 0 : 1; return 0; }
EXPORT int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
EXPORT int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Fake GPU"); return 0; }
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 6; return 0; }
EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) { CALLED; *context = &now_ms; return 0; }
EXPORT int cuCtxSetCurrent(void *context) { return 0; }
EXPORT int cuCtxSynchronize(void) { CALLED; return 0; }
EXPORT int cuMemAlloc_v2(uint64_t *address, size_t size) {
    CALLED;
    *address = (uint64_t)(uintptr_t)calloc(1, size);
    live_buffers++;
    return 0;
}
EXPORT int cuMemFree_v2(uint64_t address) { CALLED; free((void *)(uintptr_t)address); live_buffers--; return 0; }
EXPORT int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) {
    CALLED;
    memcpy((void *)(uintptr_t)to, from, size);
    return 0;
}
EXPORT int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) {
    CALLED;
    memcpy(to, (void *)(uintptr_t)from, size);
    return 0;
}
EXPORT int cuStreamCreate(void **stream, unsigned flags) { CALLED; *stream = malloc(1); return flags == 1 ? 0 : 1; }
EXPORT int cuStreamSynchronize(void *stream) { CALLED; return 0; }
EXPORT int cuStreamBeginCapture_v2(void *stream, int mode) {
    CALLED;
    capturing = 1;
    captured_ms = 0;
    return mode == 1 ? 0 : 1;
}
EXPORT int cuStreamEndCapture(void *stream, void **graph) {
    CALLED;
    capturing = 0;
    if (broken_capture) { *graph = NULL; return 901; }
    double *work = malloc(sizeof *work);
    *work = captured_ms;
    *graph = work;
    live_graphs++;
    return 0;
}
EXPORT int cuEventCreate(void **event, unsigned flags) { CALLED; *event = calloc(1, sizeof(double)); return 0; }
EXPORT int cuEventRecord(void *event, void *stream) { CALLED; *(double *)event = now_ms; return 0; }
EXPORT int cuEventSynchronize(void *event) { CALLED; return 0; }
EXPORT int cuEventElapsedTime(float *ms, void *begin, void *end) {
    CALLED;
    *ms = (float)(*(double *)end - *(double *)begin);
    return 0;
}
EXPORT int cuGraphInstantiateWithFlags(void **launchable, void *graph, unsigned long long flags) {
    CALLED;
    double *work = malloc(sizeof *work);
    *work = *(double *)graph;
    *launchable = work;
    live_graphs++;
    return 0;
}
EXPORT int cuGraphLaunch(void *launchable, void *stream) { CALLED; now_ms += *(double *)launchable; return 0; }
EXPORT int cuGraphDestroy(void *graph) { CALLED; free(graph); live_graphs--; return 0; }
EXPORT int cuGraphExecDestroy(void *launchable) { CALLED; free(launchable); live_graphs--; return 0; }
