// What the model "scenes" knows: labels and examples, with what they mean.

/** Sentences that find one of the bundled pictures. */
export const EXAMPLES: readonly (readonly [zh: string, en: string])[] = [
  ["草坪上的一只蓝猫", "a blue cat on the lawn"],
  ["海上的绿兔子", "a green rabbit at sea"],
  ["沙漠里的红城堡", "a red castle in the desert"],
  ["屋子里三只灰色企鹅", "three grey penguins indoors"],
  ["蓝天上的黄卡车", "a yellow truck in the sky"],
  ["沙滩上的紫色月亮", "a purple moon on the beach"],
  ["夜空里的绿色爱心", "a green heart in the night sky"],
  ["橙色的椅子和紫色的海龟", "an orange chair and a purple turtle"],
];

/** Labels that belong together, and the sentence that they are put into. */
export interface LabelSet {
  labels: readonly string[];
  template: string;
}

export const LABEL_SETS = {
  things: { labels: ["猫", "狗", "鸟", "鱼", "乌龟", "企鹅", "汽车", "帆船", "房子", "树", "月亮", "雨伞"], template: "一张画着{}的图画" },
  places: { labels: ["草地", "雪地", "沙漠", "沙滩", "大海", "夜空", "蓝天", "森林", "马路", "房间", "山", "纸"], template: "一张画着{}的图画" },
  colours: { labels: ["红色", "橙色", "黄色", "绿色", "蓝色", "紫色", "粉色", "棕色", "黑色", "白色", "灰色"], template: "{}的东西" },
} as const satisfies Record<string, LabelSet>;

export type LabelSetName = keyof typeof LABEL_SETS;

/** What the labels mean, for those who read no Chinese. */
export const MEANINGS: Readonly<Record<string, string>> = {
  草地: "grass", 雪地: "snow", 沙漠: "desert", 沙滩: "beach", 大海: "sea", 夜空: "night sky", 蓝天: "blue sky", 森林: "forest",
  马路: "road", 房间: "room", 山: "mountains", 纸: "paper",
  红色: "red", 橙色: "orange", 黄色: "yellow", 绿色: "green", 蓝色: "blue", 紫色: "purple", 粉色: "pink", 棕色: "brown", 黑色: "black",
  白色: "white", 灰色: "grey",
  猫: "cat", 狗: "dog", 兔子: "rabbit", 鸟: "bird", 鱼: "fish", 乌龟: "turtle", 蝴蝶: "butterfly", 鸭子: "duck", 猪: "pig",
  蜗牛: "snail", 螃蟹: "crab", 企鹅: "penguin", 汽车: "car", 公交车: "bus", 卡车: "truck", 自行车: "bicycle", 飞机: "plane",
  帆船: "sailboat", 火车: "train", 火箭: "rocket", 热气球: "balloon", 房子: "house", 塔: "pagoda", 城堡: "castle",
  帐篷: "tent", 风车: "windmill", 树: "tree", 花: "flower", 仙人掌: "cactus", 蘑菇: "mushroom", 苹果: "apple", 圆形: "circle",
  三角形: "triangle", 正方形: "square", 星星: "star", 爱心: "heart", 菱形: "diamond", 太阳: "sun", 月亮: "moon", 云: "cloud",
  雨伞: "umbrella", 杯子: "cup", 帽子: "hat", 书: "book", 椅子: "chair", 台灯: "lamp", 礼盒: "gift", 钥匙: "key",
};
