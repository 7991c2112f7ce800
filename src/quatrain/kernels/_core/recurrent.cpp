// Entry points of the recurrent scans.
#include "gru_before.h"
#include "gru_cell.h"
#include "lstm_cell.h"
#include "recurrent_step.h"
#include "rnn_cell.h"

extern "C" {

QT_EXPORT int qt_recurrent_padded(const int64_t* a) {  // (dtype, width): numbers of one gate in a saved tensor
    const int64_t lane = a[0] == QT_F64 ? Plain<double>::pad : Plain<float>::pad;
#if defined(__AVX512BF16__)
    return int(round_up(a[1], a[0] == QT_BF16 ? Pairs::pad : lane));
#else
    return int(round_up(a[1], lane));
#endif
}

// (bytes, address): memory whose pages are there already, if the pool has some.
QT_EXPORT int qt_pool_take(int64_t* a) {
    a[1] = (int64_t)Pool::shared().take(a[0]);
    return a[1] ? 0 : NO_MEMORY;
}
QT_EXPORT int qt_pool_give(const int64_t* a) {
    Pool::shared().give((void*)a[0]);
    return 0;
}

QT_EXPORT int qt_lstm_forward(const int64_t* a) { return dispatch<LstmCell, Forward>(*(const QtRecurrent*)a); }
QT_EXPORT int qt_lstm_backward(const int64_t* a) { return dispatch<LstmCell, Backward>(*(const QtRecurrent*)a); }
QT_EXPORT int qt_rnn_forward(const int64_t* a) { return dispatch<RnnCell, Forward>(*(const QtRecurrent*)a); }
QT_EXPORT int qt_rnn_backward(const int64_t* a) { return dispatch<RnnCell, Backward>(*(const QtRecurrent*)a); }

QT_EXPORT int qt_lstm_step(const int64_t* a) { return dispatch<LstmCell, Once>(*(const QtRecurrent*)a); }
QT_EXPORT int qt_rnn_step(const int64_t* a) { return dispatch<RnnCell, Once>(*(const QtRecurrent*)a); }

QT_EXPORT int qt_gru_step(const int64_t* args) {
    const QtRecurrent& a = *(const QtRecurrent*)args;
    return a.variant ? dispatch<GruBefore, Once>(a) : dispatch<GruCell, Once>(a);
}
QT_EXPORT int qt_gru_forward(const int64_t* args) {
    const QtRecurrent& a = *(const QtRecurrent*)args;
    return a.variant ? dispatch<GruBefore, BeforeForward>(a) : dispatch<GruCell, Forward>(a);
}
QT_EXPORT int qt_gru_backward(const int64_t* args) {
    const QtRecurrent& a = *(const QtRecurrent*)args;
    return a.variant ? dispatch<GruBefore, BeforeBackward>(a) : dispatch<GruCell, Backward>(a);
}
}
