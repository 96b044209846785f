"use strict";

/* What the page says, in English and Turkish. A word that needs a figure is a function; `count` picks the plural. */
const count = (n, one, many) => `${format.number(n)} ${n === 1 ? one : many}`;
const list = (...parts) => parts.filter(Boolean).join(", ");
const WORDS = {
  en: {
    skip: "Skip to the figures", languages: "Language", overview: "Overview", example: "Example request",
    connecting: "Connecting", serving: "Serving", loading: "Loading a model", draining: "Shutting down", gone: "Not reachable", locked: "Locked",
    summary: (ready, all, up) => `${ready} of ${all} models in memory · up for ${up}`,
    requests: "Requests", perSecond: "/s", requestsNote: (total, errors, active) =>
      list(`${format.number(total)} in all`, errors && count(errors, "error", "errors"), active && `${format.number(active)} under way`),
    latency: "Latency, median", latencyNote: p95 => `95 % within ${p95}`, noRequests: "no requests just now",
    generation: "Generation", tokensPerSecond: "tokens/s", generationNote: done =>
      list(count(done.generated_tokens, "token", "tokens"), done.active && `${count(done.active, "answer", "answers")} under way`,
        done.waiting && `${format.number(done.waiting)} waiting`,
        done.drafted_tokens && `${format.number(done.accepted_tokens)} of ${count(done.drafted_tokens, "guess", "guesses")} right`),
    queue: "Queue", waiting: "waiting", queueNote: (texts, batches) => `${count(texts, "text", "texts")} in ${count(batches, "batch", "batches")}`,
    cache: "Cache hits", cacheNote: (hits, lookups, entries, most) =>
      `${format.number(hits)} of ${count(lookups, "look-up", "look-ups")}; ${format.number(entries)} of ${format.number(most)} places`,
    cacheOff: "turned off", noLookups: "no look-ups yet",
    memory: "Memory", process: "Process", models: "Models", budget: "Models' budget", memoryChart: "Memory over time",
    card: "Card", cardMemory: (name, models, free) => `${name}: ${models}${free === null ? "" : `, ${free} free`}`,
    memoryAt: (time, process, models) => `${time}: process ${process}, models ${models}`,
    loaded: name => `${name} loaded`, unloaded: name => `${name} unloaded`,
    loadTimes: "Load times", noLoads: "Nothing has been loaded yet.", loadNote: (times, median) => `${count(times, "load", "loads")}, median ${median}`,
    absent: "not in memory", loadingModel: "loading", ready: "in memory", pinned: "stays: pinned", forever: "stays until unloaded",
    busyNow: "in use", leavesIn: time => `leaves in ${time}`, leavesNow: "leaves now",
    expectedIn: time => `expected in ${time}`, savedLoads: n => `${count(n, "wait", "waits")} saved`, savedMemory: time => `${time} of memory saved`, queuedTexts: n => `${count(n, "text", "texts")} waiting`,
    served: "served as", dimensions: n => count(n, "dimension", "dimensions"),
    embedding: "sentence model", reranker: "reranker", classifier: "classifier", sparse: "sparse vectors",
    generator: "text generator", object: "own object", ownObject: "loaded by the application",
    load: "Load", unload: "Unload", loadModel: name => `Load ${name}`, unloadModel: name => `Unload ${name}`,
    working: "…", failed: (name, reason) => `${name}: ${reason}`,
    tryIt: "Try it", copy: "Copy", copied: "Copied", tryText: "Hello, world",
    lost: wait => `The server does not answer. Trying again in ${wait}.`, trying: "The server does not answer. Trying now…", tryNow: "Try now",
    back: "The server answers again.",
    keyTitle: "This server asks for a key", keyWhy: "It stays in this tab and is forgotten when the tab is closed.",
    keyLabel: "API key", keyEnter: "Show the figures", keyWrong: "The server does not accept this key.",
    cpu: "CPU", cores: "cores", threads: "threads", isa: "instructions", device: "device", python: "Python", pid: "process id", platform: "system",
    oneOf: (pid, workers) => `${pid}, one of ${workers}: its own figures`,
    day: "d", hour: "h", minute: "min",
  },
  tr: {
    skip: "Göstergelere geç", languages: "Dil", overview: "Genel bakış", example: "Örnek istek",
    connecting: "Bağlanıyor", serving: "Hizmette", loading: "Model yükleniyor", draining: "Kapanıyor", gone: "Ulaşılamıyor", locked: "Kilitli",
    summary: (ready, all, up) => `Bellekteki modeller: ${ready}/${all} · çalışma süresi ${up}`,
    requests: "İstekler", perSecond: "/sn", requestsNote: (total, errors, active) =>
      list(`toplam ${format.number(total)}`, errors && `hatalı ${format.number(errors)}`, active && `süren ${format.number(active)}`),
    latency: "Yanıt süresi, ortanca", latencyNote: p95 => `%95'i en çok ${p95}`, noRequests: "şu anda istek yok",
    generation: "Metin üretimi", tokensPerSecond: "belirteç/sn", generationNote: done =>
      list(`${format.number(done.generated_tokens)} belirteç`, done.active && `${format.number(done.active)} yanıt sürüyor`,
        done.waiting && `bekleyen ${format.number(done.waiting)}`,
        done.drafted_tokens && `${format.number(done.drafted_tokens)} tahminden tutan ${format.number(done.accepted_tokens)}`),
    queue: "Kuyruk", waiting: "bekliyor", queueNote: (texts, batches) => `${format.number(batches)} yığında ${format.number(texts)} metin`,
    cache: "Önbellek isabeti", cacheNote: (hits, lookups, entries, most) =>
      `${format.number(lookups)} aramada ${format.number(hits)} isabet; doluluk ${format.number(entries)}/${format.number(most)}`,
    cacheOff: "kapalı", noLookups: "henüz arama yok",
    memory: "Bellek", process: "Süreç", models: "Modeller", budget: "Modellerin sınırı", memoryChart: "Zaman içinde bellek",
    card: "Ekran kartı", cardMemory: (name, models, free) => `${name}: ${models}${free === null ? "" : `, ${free} boş`}`,
    memoryAt: (time, process, models) => `${time}: süreç ${process}, modeller ${models}`,
    loaded: name => `${name} yüklendi`, unloaded: name => `${name} bellekten çıktı`,
    loadTimes: "Yükleme süreleri", noLoads: "Henüz hiçbir model yüklenmedi.", loadNote: (times, median) => `${format.number(times)} yükleme, ortanca ${median}`,
    absent: "bellekte değil", loadingModel: "yükleniyor", ready: "bellekte", pinned: "hep kalır: sabitlendi", forever: "çıkarılana kadar kalır",
    busyNow: "kullanımda", leavesIn: time => `${time} sonra çıkar`, leavesNow: "şimdi çıkıyor",
    expectedIn: time => `${time} içinde bekleniyor`, savedLoads: n => `${format.number(n)} bekleme önlendi`, savedMemory: time => `${time} bellek kazanıldı`, queuedTexts: n => `${format.number(n)} metin bekliyor`,
    served: "sunulan adlar:", dimensions: n => `${format.number(n)} boyut`,
    embedding: "cümle modeli", reranker: "yeniden sıralayıcı", classifier: "sınıflandırıcı", sparse: "seyrek vektörler",
    generator: "metin üreteci", object: "özel nesne", ownObject: "uygulama yükler",
    load: "Yükle", unload: "Çıkar", loadModel: name => `Yükle: ${name}`, unloadModel: name => `Çıkar: ${name}`,
    working: "…", failed: (name, reason) => `${name}: ${reason}`,
    tryIt: "Deneyin", copy: "Kopyala", copied: "Kopyalandı", tryText: "Merhaba dünya",
    lost: wait => `Sunucu yanıt vermiyor. ${wait} sonra yeniden denenecek.`, trying: "Sunucu yanıt vermiyor. Deneniyor…", tryNow: "Şimdi dene",
    back: "Sunucu yeniden yanıt veriyor.",
    keyTitle: "Bu sunucu anahtar istiyor", keyWhy: "Anahtar yalnızca bu sekmede kalır, sekme kapanınca unutulur.",
    keyLabel: "API anahtarı", keyEnter: "Göstergeleri aç", keyWrong: "Sunucu bu anahtarı kabul etmedi.",
    cpu: "İşlemci", cores: "çekirdek", threads: "iş parçacığı", isa: "komut kümesi", device: "aygıt", python: "Python", pid: "süreç no", platform: "sistem",
    oneOf: (pid, workers) => `${pid}; ${workers} süreçten birinin kendi rakamları`,
    day: "gün", hour: "sa", minute: "dk",
  },
};

const remembered = (() => { try { return localStorage.getItem("language"); } catch { return null; } })();
let language = remembered in WORDS ? remembered
  : navigator.languages.map(tag => tag.slice(0, 2).toLowerCase()).find(tag => tag in WORDS) ?? "en";
let words = WORDS[language];

/* Figures as the language writes them. Each formatter is made once a language. */
const made = new Map();
const intl = options => {
  const key = language + JSON.stringify(options);
  if (!made.has(key)) made.set(key, new Intl.NumberFormat(language, options));
  return made.get(key);
};
const unit = (name, maximumFractionDigits) => intl({ style: "unit", unit: name, unitDisplay: "short", maximumFractionDigits });
const format = {
  number: n => intl({ maximumFractionDigits: 0 }).format(n),
  bytes: n => {
    /* Powers of 1024 as in the command line and the log. Intl has the decimal units alone. */
    const written = (count, digits, name) => `${intl({ maximumFractionDigits: digits }).format(count)} ${name}`;
    const mebi = n / 2 ** 20;
    if (n && mebi < 0.1) return written(n / 2 ** 10, 0, "KiB");
    return mebi < 1024 ? written(mebi, mebi < 10 ? 1 : 0, "MiB") : written(mebi / 1024, 2, "GiB");
  },
  seconds: s => text(format.timing(s)),
  duration: s => {
    const whole = Math.max(0, Math.round(s));
    const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
    if (days) return `${format.number(days)} ${words.day} ${hours} ${words.hour}`;
    if (hours) return `${hours} ${words.hour} ${minutes} ${words.minute}`;
    return minutes ? `${minutes} ${words.minute}` : unit("second", 0).format(whole);
  },
  countdown: s => {
    const whole = Math.max(0, Math.ceil(s));
    return whole < 3600 ? `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}` : format.duration(whole);
  },
  time: (epoch, withSeconds) => new Intl.DateTimeFormat(language, {
    hour: "2-digit", minute: "2-digit", second: withSeconds ? "2-digit" : undefined, hourCycle: "h23",
  }).format(epoch * 1000),
  /* The following give a formatter and its value: figures in large type show their unit small. */
  rate: n => [intl({ maximumFractionDigits: n < 10 ? 1 : 0 }), n],
  share: n => [intl({ style: "percent", maximumFractionDigits: n > 0 && n < 0.1 ? 1 : 0 }), n],
  timing: s => s < 1 ? [unit("millisecond", s < 0.01 ? 1 : 0), s * 1000] : [unit("second", s < 10 ? 1 : 0), s],
};
const text = ([formatter, value]) => formatter.format(value);
