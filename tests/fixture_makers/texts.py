"""The texts of the fixtures: ordinary Turkish and English, and what breaks tokenizers."""

TURKISH = [
    "Merhaba dünya, bugün hava çok güzel.",
    "Yapay zekâ destekli sohbet robotu sorularınızı yanıtlar.",
    "İstanbul'da IŞIK, ılık İÇİN; ağır ÇĞÖŞÜ.",
    "Siparişim ne zaman kargoya verilecek, öğrenebilir miyim?",
    "Üniversite sınavı için nasıl çalışmalıyım?",
    "Kullanıcı şifresini unuttuğunda yeni bir bağlantı gönderilir.",
    "Türkiye'nin başkenti Ankara, en kalabalık şehri İstanbul'dur.",
    "Bu ürünün iadesi kaç gün içinde yapılabilir?",
]
ENGLISH = [
    "Hello world, the weather is very nice today.",
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of Turkey?",
    "How do I reset my password when I cannot reach my e-mail?",
    "Sentence embeddings map a text to a vector of fixed size.",
    "The order will be shipped within three working days.",
    "Models are loaded on first use and unloaded when idle.",
    "A cached answer costs nothing; a lost one costs a customer.",
]
LONG = "Bu uzun metin, modelin alabileceğinden daha fazla sözcük içerir and it goes on in English. " * 8
ODD = [
    "",
    " ",
    "a",
    "İ",
    "?",
    "çğıöşü ÇĞIİÖŞÜ",
    "😀",
    "Great job 👍🏽 👨‍👩‍👧 tebrikler!",
    "nul\0inside",
    "\0",
    "i\u0307stanbul s\u0327eker g\u0306u\u0308n e\u0301",  # combining marks: decomposed İ, ş, ğ, ü, é
    "\u0301",
    "tabs\tand\nnew lines\r\n   spaces ",
    "x" * 300,  # one word beyond WordPiece's limit of 100 characters
    "1234567890 3.14 %50 12:30",
    "你好世界 日本語",
    "ﬁ ½ ² ① ＡＢＣ\u00a0\u3000x",
    "[CLS] [MASK] [SEP] <s> <mask> </s>",  # special tokens written in the text
    "zero\u200bwidth \u200d\ufeff joiners",
    "naïve café ÀÉÎ",
    "ΟΔΟΣ σοφός",
    "https://example.com/a_b?c=d&e=f",
    "ali.veli@ornek.com.tr",
    LONG,
]
REFERENCE = TURKISH[:4] + ENGLISH[:4] + ODD

# What the vocabularies are counted on.
CORPUS = TURKISH + ENGLISH + ["query: passage: document: soru: yanıt:", LONG]
