// Clock generators whose output is their input: a simulation counts clocks, whatever their frequency. They lock after 16 clocks.

module tritloom_pll (input clock, output locked);
    reg [4:0] passed = 0;
    assign locked = passed[4];
    always @(posedge clock) if (!locked) passed <= passed + 1;
endmodule

module SB_PLL40_CORE #(
    parameter FEEDBACK_PATH = "SIMPLE", parameter DELAY_ADJUSTMENT_MODE_FEEDBACK = "FIXED",
    parameter DELAY_ADJUSTMENT_MODE_RELATIVE = "FIXED", parameter SHIFTREG_DIV_MODE = 0, parameter FDA_FEEDBACK = 0,
    parameter FDA_RELATIVE = 0, parameter PLLOUT_SELECT = "GENCLK", parameter DIVR = 0, parameter DIVF = 0, parameter DIVQ = 0,
    parameter FILTER_RANGE = 0, parameter ENABLE_ICEGATE = 0, parameter TEST_MODE = 0
) (
    input REFERENCECLK, EXTFEEDBACK, BYPASS, RESETB, LATCHINPUTVALUE, SDI, SCLK, input [7:0] DYNAMICDELAY,
    output PLLOUTCORE, PLLOUTGLOBAL, LOCK, SDO
);
    assign PLLOUTCORE = REFERENCECLK, PLLOUTGLOBAL = REFERENCECLK, SDO = 0;
    tritloom_pll lock (REFERENCECLK, LOCK);
endmodule
