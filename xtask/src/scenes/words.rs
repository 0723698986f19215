//! What there is to draw, and what it is called.

use super::art::{self, Op};

/// A kind of object.
pub struct Kind {
    /// Its names; the first is the tag.
    pub names: &'static [&'static str],
    /// The measure words that count it.
    pub measures: &'static [&'static str],
    /// The drawing.
    pub art: &'static [Op],
}

const fn kind(names: &'static [&'static str], measures: &'static [&'static str], art: &'static [Op]) -> Kind {
    Kind { names, measures, art }
}

/// No name holds 大 or 小, which stand for a size, and none holds another kind's name.
pub const KINDS: &[Kind] = &[
    kind(&["猫", "猫咪"], &["只"], art::CAT),
    kind(&["狗", "狗狗"], &["只", "条"], art::DOG),
    kind(&["兔子", "兔"], &["只"], art::RABBIT),
    kind(&["鸟", "鸟儿"], &["只"], art::BIRD),
    kind(&["鱼", "鱼儿"], &["条"], art::FISH),
    kind(&["乌龟", "海龟"], &["只"], art::TURTLE),
    kind(&["蝴蝶"], &["只"], art::BUTTERFLY),
    kind(&["鸭子"], &["只"], art::DUCK),
    kind(&["猪", "猪猪"], &["头", "只"], art::PIG),
    kind(&["蜗牛"], &["只"], art::SNAIL),
    kind(&["螃蟹"], &["只"], art::CRAB),
    kind(&["企鹅"], &["只"], art::PENGUIN),
    kind(&["汽车", "轿车"], &["辆"], art::CAR),
    kind(&["公交车", "巴士"], &["辆"], art::BUS),
    kind(&["卡车", "货车"], &["辆"], art::TRUCK),
    kind(&["自行车", "单车"], &["辆"], art::BICYCLE),
    kind(&["飞机", "客机"], &["架"], art::PLANE),
    kind(&["帆船"], &["艘", "条"], art::SAILBOAT),
    kind(&["火车", "列车"], &["列"], art::TRAIN),
    kind(&["火箭"], &["枚", "支"], art::ROCKET),
    kind(&["热气球"], &["个"], art::BALLOON),
    kind(&["房子", "房屋"], &["座", "栋"], art::HOUSE),
    kind(&["塔", "宝塔"], &["座"], art::PAGODA),
    kind(&["城堡", "古堡"], &["座"], art::CASTLE),
    kind(&["帐篷"], &["顶", "个"], art::TENT),
    kind(&["风车"], &["座", "个"], art::WINDMILL),
    kind(&["树"], &["棵"], art::TREE),
    kind(&["花", "鲜花"], &["朵"], art::FLOWER),
    kind(&["仙人掌"], &["棵", "株"], art::CACTUS),
    kind(&["蘑菇"], &["个", "朵"], art::MUSHROOM),
    kind(&["苹果"], &["个"], art::APPLE),
    kind(&["圆形", "圆"], &["个"], art::CIRCLE),
    kind(&["三角形"], &["个"], art::TRIANGLE),
    kind(&["正方形", "方块"], &["个"], art::SQUARE),
    kind(&["星星", "五角星"], &["颗", "个"], art::STAR),
    kind(&["爱心", "心形"], &["颗", "个"], art::HEART),
    kind(&["菱形"], &["个"], art::DIAMOND),
    kind(&["太阳"], &["个", "轮"], art::SUN),
    kind(&["月亮", "月牙"], &["个", "轮"], art::MOON),
    kind(&["云", "云彩"], &["朵", "片"], art::CLOUD),
    kind(&["雨伞", "伞"], &["把"], art::UMBRELLA),
    kind(&["杯子", "马克杯"], &["个", "只"], art::CUP),
    kind(&["帽子", "礼帽"], &["顶"], art::HAT),
    kind(&["书"], &["本"], art::BOOK),
    kind(&["椅子"], &["把", "张"], art::CHAIR),
    kind(&["台灯"], &["盏"], art::LAMP),
    kind(&["礼盒", "礼物"], &["个", "份"], art::GIFT),
    kind(&["钥匙"], &["把"], art::KEY),
];

/// A colour of objects.
pub struct Colour {
    /// The adjectives that 的 follows.
    pub names: &'static [&'static str],
    /// The syllable that stands right before a noun, where that is natural.
    pub short: Option<&'static str>,
    pub rgb: [u8; 3],
}

const fn colour(names: &'static [&'static str], short: Option<&'static str>, rgb: [u8; 3]) -> Colour {
    Colour { names, short, rgb }
}

pub const COLOURS: &[Colour] = &[
    colour(&["红色"], Some("红"), [218, 44, 42]),
    colour(&["橙色", "橘色"], None, [246, 136, 24]),
    colour(&["黄色"], Some("黄"), [252, 214, 42]),
    colour(&["绿色"], Some("绿"), [44, 158, 66]),
    colour(&["蓝色"], Some("蓝"), [38, 98, 214]),
    colour(&["紫色"], Some("紫"), [134, 62, 186]),
    colour(&["粉色", "粉红色"], None, [252, 150, 190]),
    colour(&["棕色", "褐色"], None, [128, 76, 42]),
    colour(&["黑色"], Some("黑"), [34, 34, 40]),
    colour(&["白色"], Some("白"), [252, 252, 252]),
    colour(&["灰色"], Some("灰"), [146, 148, 154]),
];

pub const BLACK: usize = 8;
pub const WHITE: usize = 9;

/// Where a scene takes place: names as (noun, phrase of place).
pub type Backdrop = &'static [(&'static str, &'static str)];

pub const BACKDROPS: &[Backdrop] = &[
    &[("草地", "草地上"), ("草坪", "草坪上"), ("草原", "草原上")],
    &[("雪地", "雪地里"), ("雪地", "雪地上"), ("雪原", "雪原上")],
    &[("沙漠", "沙漠里"), ("沙漠", "沙漠中"), ("荒漠", "荒漠里")],
    &[("沙滩", "沙滩上"), ("海边", "海边"), ("海滩", "海滩上")],
    &[("大海", "大海上"), ("海面", "海面上"), ("大海", "海上")],
    &[("夜空", "夜空中"), ("夜空", "夜空里"), ("星空", "星空下")],
    &[("蓝天", "蓝天上"), ("蓝天", "蓝天下"), ("晴空", "晴空下")],
    &[("森林", "森林里"), ("森林", "森林中"), ("树林", "树林里")],
    &[("马路", "马路上"), ("街道", "街道上"), ("公路", "公路上")],
    &[("房间", "房间里"), ("屋子", "屋子里"), ("室内", "室内")],
    &[("山", "山前"), ("高山", "高山下"), ("山", "山脚下")],
    &[("纸", "纸上"), ("本子", "本子上"), ("作业本", "作业本上")],
];

/// Numerals as they stand before a measure word, from one on.
pub const NUMERALS: [&str; 4] = ["一", "两", "三", "四"];

/// 大 and 小 stand right before the noun; in the longer form before everything else.
pub const LARGE: [&str; 2] = ["大", "很大的"];
pub const SMALL: [&str; 2] = ["小", "很小的"];
