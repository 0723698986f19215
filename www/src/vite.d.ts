/// <reference types="vite/client" />

/** The headers that a server of this page sends. */
declare const __HEADERS__: Readonly<Record<string, string>>;
